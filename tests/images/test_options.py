"""What to make of the values of an image: the options, before any image is read."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masklet.errors import ConfigError
from masklet.images.options import ImageOptions


@pytest.mark.parametrize(
    "value_range",
    [
        (5, 5),
        (9, 3),
        (0, math.nan),
        (-math.inf, 0),
        (0, math.inf),
        (-1.7e308, 1.7e308),  # finite, but not their difference
        (0, 10**400),
        (0, 1, 2),
        (0,),
        7,
        "Auto",
        "12",
        ("0", "1"),
        (False, True),
        (0, 1j),
        (None, 1),
        {"low": 0},
    ],
)
def test_a_range_that_would_do_nothing_or_is_none_is_refused(value_range):
    with pytest.raises(ConfigError, match=r"^value_range is .*: expected \(low, high\), two numbers"):
        ImageOptions(value_range=value_range)


@pytest.mark.parametrize(
    "bands", [-1, (), (0, 1), (0, 1, 2, 3), "012", (0, 1, -2), 1.0, (0.0, 1, 2), True, (None,) * 3]
)
def test_bands_are_one_or_three_numbers_from_0(bands):
    with pytest.raises(ConfigError, match="^bands is .*: expected the channel that becomes a greyscale image, or"):
        ImageOptions(bands=bands)


@pytest.mark.parametrize("nodata", ["nan", (0,), True, 1j, 10**400])
def test_nodata_is_a_number(nodata):
    with pytest.raises(ConfigError, match=r"^nodata is .*: expected a number that a pixel can have, float"):
        ImageOptions(nodata=nodata)


def test_options_of_numpy_are_those_of_python():
    given = ImageOptions(value_range=np.array([0, 4095]), bands=np.array([3, 2, 1]), nodata=np.float32(-9999))
    assert given == ImageOptions(value_range=(0, 4095), bands=[3, 2, 1], nodata=-9999)
    assert {type(one) for one in (*given.value_range, given.nodata)} == {float}
    assert {type(one) for one in given.bands} == {int}
    assert ImageOptions(bands=(2,)) == ImageOptions(bands=np.uint8(2))
    assert ImageOptions().is_default
    assert not given.is_default


numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
options = st.builds(
    ImageOptions,
    value_range=st.none() | st.just("auto") | st.tuples(numbers, numbers).filter(lambda pair: pair[0] < pair[1]),
    bands=st.none() | st.integers(0, 300) | st.tuples(*[st.integers(0, 300)] * 3),
    nodata=st.none() | st.floats() | st.integers(-(2**63), 2**64 - 1),
)


@given(options)
@settings(max_examples=40)
def test_options_survive_a_file(options):
    text = json.dumps(options.to_json(), allow_nan=False)  # JSON has no NaN
    assert repr(ImageOptions.from_json(json.loads(text))) == repr(options)


@pytest.mark.parametrize("saved", [5, [], {"nodata": "none"}, {"nodata": []}, {"value_range": "x"}, {"bands": [0, 1]}])
def test_other_saved_options_are_refused(saved):
    with pytest.raises(ConfigError, match="image options are|value_range is|bands is|nodata is"):
        ImageOptions.from_json(saved)
