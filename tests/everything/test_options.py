"""Options of automatic masks: defaults of the model, and what is refused."""

from dataclasses import fields, replace

import pytest

import masklet
from masklet.config import Sam2EverythingConfig
from masklet.engine import make_engine
from masklet.errors import ConfigError
from masklet.everything.options import EverythingKeywords, EverythingOptions
from masklet.segmenter import Segmenter


def test_editors_know_every_option_and_its_type():
    """The keywords that type checkers read are the fields of the options."""
    expected = {field.name: field.type for field in fields(EverythingOptions)}
    assert {name: kind.__forward_arg__ for name, kind in EverythingKeywords.__annotations__.items()} == expected


def test_thresholds_default_to_those_of_the_reference(tiny_config):
    assert EverythingOptions.for_model(tiny_config, {}) == EverythingOptions()
    assert (EverythingOptions().iou_threshold, EverythingOptions().stability_threshold) == (0.8, 0.95)
    assert EverythingOptions().points_per_side == 32


def test_thresholds_default_to_those_of_the_model(tiny_config):
    config = replace(tiny_config, everything=Sam2EverythingConfig(iou_threshold=0.2, stability_threshold=0.1))
    options = EverythingOptions.for_model(config, {"stability_threshold": 0.5, "crops": 1})
    assert options == EverythingOptions(iou_threshold=0.2, stability_threshold=0.5, crops=1)


def test_the_thresholds_of_the_model_are_used(tiny_model, sam, image, monkeypatch):
    def masks(thresholds, **options):
        monkeypatch.setattr(tiny_model, "config", replace(tiny_model.config, everything=thresholds))
        return len(Segmenter(make_engine(tiny_model), sam.image_processor).everything(image, **options))

    low, high = Sam2EverythingConfig(iou_threshold=0, stability_threshold=0), Sam2EverythingConfig(iou_threshold=1)
    assert masks(low, points_per_side=3) > 0
    assert masks(high, points_per_side=3) == 0
    assert masks(high, points_per_side=3, iou_threshold=0, stability_threshold=0) == masks(low, points_per_side=3)


def test_the_embedded_model_has_thresholds_of_its_own():
    thresholds = masklet.load(device="cpu").model.config.everything
    assert thresholds == Sam2EverythingConfig(iou_threshold=0.4, stability_threshold=0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points_per_side": 0}, "points_per_side is 0: expected a whole number, 1 to 1024"),
        ({"points_per_side": 2.5}, "points_per_side is 2.5: expected a whole number, 1 to 1024"),
        ({"crops": -1}, "crops is -1: expected a whole number, 0 to 8"),
        ({"min_area": "9"}, "min_area is '9': expected a whole number, 0 or more"),
        ({"iou_threshold": 1.5}, "iou_threshold is 1.5: expected a number, 0 to 1"),
        ({"stability_threshold": float("nan")}, "stability_threshold is nan: expected a number, 0 to 1"),
        ({"stability_offset": -1}, "stability_offset is -1: expected a finite number, 0 or more"),
        (
            {"stability_offset": 10**400},
            f"stability_offset is 1{79 * '0'}…: expected a finite number, 0 or more",
        ),
        ({"points_per_side": 10**6}, "points_per_side is 1000000: expected a whole number, 1 to 1024"),
        ({"crops": 30}, "crops is 30: expected a whole number, 0 to 8"),
        ({"min_area": True}, "min_area is True: expected a whole number, 0 or more"),
        ({"crop_overlap": 0.3}, "crop_overlap has no effect without crops: expected crops=1 or more with it"),
        ({"crop_nms": 0.3}, "crop_nms has no effect without crops: expected crops=1 or more with it"),
        ({"candidates": 3}, "candidates is 3: expected True or False"),
        ({"mask_threshold": float("inf")}, "mask_threshold is inf: expected a finite number"),
        (
            {"point_grids": [[(0.5, 0.5)]], "points_per_side": 8},
            "points_per_side has no effect with point_grids: expected one of the two",
        ),
        (
            {"point_grids": [[(0.5, 0.5)]], "crops": 1},
            "point_grids is 1 grids: expected a list of one grid for each layer of crops, so 2",
        ),
        ({"point_grids": 3}, "point_grids is int: expected a list of one grid for each layer of crops, so 1"),
        *(
            (
                {"point_grids": [grid]},
                "grid 0 of point_grids is not a grid of points: expected (points, 2), x and y from 0 to 1, at least "
                "one point",
            )
            for grid in ([], [(0.5, 1.5)], [(float("nan"), 0.5)], [(1, 2, 3)], "a grid", [(0.5, 10**400)])
        ),
        ({"refine": "false"}, "refine is 'false': expected True or False"),
        ({"box_nms": None}, "box_nms is None: expected a number, 0 or more"),
        (
            {"points_per_side": 3, "crops": 2, "crop_points_divisor": 2},
            "points_per_side 3 leaves no points for the crops of layer 2, which have 3 / 2**2 along a side: expected "
            "more points, or fewer layers",
        ),
    ],
)
def test_an_invalid_option_is_refused(sam, image, options, message):
    for find in (sam.everything, sam.everything_tiled):  # when called, not when iterated
        with pytest.raises(ConfigError) as caught:
            find(image, **options)
        assert str(caught.value) == message


def test_an_unknown_option_is_refused_with_the_known_ones(sam, image):
    known = (
        "resolution, value_range, bands, nodata, points_per_side, point_grids, crops, crop_overlap, "
        "crop_points_divisor, iou_threshold, stability_threshold, stability_offset, box_nms, crop_nms, min_area, "
        "refine, candidates, mask_threshold"
    )
    for find, others in (
        (sam.everything, "packed, text, detector, detection_threshold"),
        (sam.everything_tiled, "tile, overlap"),
    ):
        with pytest.raises(ConfigError) as caught:
            find(image, points=3)
        assert str(caught.value) == f"there is no option points: expected {others}, {known}"
