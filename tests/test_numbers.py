import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from masklet.errors import PromptError
from masklet.numbers import real_number, size_of, whole_number


@pytest.mark.parametrize(
    "value", [2, 2.0, np.int8(2), np.uint64(2), np.float32(2), np.float64(2), np.array(2), torch.tensor(2)]
)
def test_whole_numbers_come_in_many_types(value):
    number = whole_number("frame", value, PromptError)
    assert (number, type(number)) == (2, int)


NO_WHOLE_NUMBER = [2.5, "0", b"0", None, math.nan, math.inf, True, np.bool_(True), 1j, [2], np.array([2]), 10**400]


@pytest.mark.parametrize("value", NO_WHOLE_NUMBER, ids=lambda value: repr(value)[:20])
def test_what_is_not_a_whole_number_is_refused(value):
    with pytest.raises(PromptError, match="^frame is .*: expected a whole number$"):
        whole_number("frame", value, PromptError)


def test_limits_of_whole_numbers_are_named():
    assert whole_number("n", 1.0, ValueError, least=1, most=3) == 1
    with pytest.raises(ValueError, match="n is 0: expected a whole number, 1 or more"):
        whole_number("n", 0, ValueError, least=1)
    with pytest.raises(ValueError, match="n is 4: expected a whole number, 1 to 3"):
        whole_number("n", 4, ValueError, least=1, most=3)


@pytest.mark.parametrize(
    "value", [0.5, np.float16(0.5), np.float64(0.5), Fraction(1, 2), Decimal("0.5"), torch.tensor(0.5)]
)
def test_finite_numbers_come_in_many_types(value):
    number = real_number("alpha", value, PromptError)
    assert (number, type(number)) == (0.5, float)


@pytest.mark.parametrize(
    "value", ["0.5", None, math.nan, -math.inf, True, 10**400, np.array([0.5]), Decimal("nan"), 1j]
)
def test_what_is_not_a_finite_number_is_refused(value):
    with pytest.raises(PromptError, match="^alpha is .*: expected a number, 0 to 1$"):
        real_number("alpha", value, PromptError, least=0, most=1)


def test_infinity_is_a_number_only_where_it_is_allowed():
    assert real_number("seconds", math.inf, ValueError, least=0, most=math.inf) == math.inf
    with pytest.raises(ValueError, match="seconds is inf: expected a finite number, 0 or more"):
        real_number("seconds", math.inf, ValueError, least=0)
    with pytest.raises(ValueError, match="seconds is nan: expected a number, 0 or more"):
        real_number("seconds", math.nan, ValueError, least=0, most=math.inf)


def test_long_values_are_cut_in_messages():
    with pytest.raises(ValueError, match="^n is 1000000*…: expected a finite number$") as caught:
        real_number("n", 10**400, ValueError)
    assert len(str(caught.value)) < 140
    with pytest.raises(ValueError, match="^n is a number of thousands of digits: expected"):
        whole_number("n", 10**5000, ValueError)


@pytest.mark.parametrize("value", [(3, 4), [3, 4], (3.0, np.int64(4)), np.array([3, 4]), torch.Size([3, 4])])
def test_sizes_come_in_many_types(value):
    assert size_of("size_hw", value, ValueError) == (3, 4)


@pytest.mark.parametrize(
    "value", [(3, 0), (3, -4), (3, 4.5), (3,), (3, 4, 3), "34", 34, None, (10**9, 10**9), (math.nan, 4), {3, 4}]
)
def test_what_is_not_a_size_is_refused(value):
    with pytest.raises(ValueError, match="^size_hw is .*: expected \\(height, width\\), whole numbers from 1"):
        size_of("size_hw", value, ValueError)
