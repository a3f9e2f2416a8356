"""The functions, loaded and called by cvat-cli's own code, as its agents and ``auto-annotate`` do."""

import logging

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cvat_cli", reason="loads functions with cvat-cli: pip install cvat-cli")

import cvat_sdk.auto_annotation as cvataa  # noqa: E402
from cvat_cli._internal import agent_driver, agent_driver_interaction, agent_driver_tracking  # noqa: E402
from cvat_cli._internal.common import FunctionLoader  # noqa: E402
from cvat_sdk import models  # noqa: E402
from cvat_sdk.auto_annotation import driver  # noqa: E402
from cvat_sdk.masks import decode_mask, encode_mask  # noqa: E402

from masklet.errors import ConfigError, PromptError  # noqa: E402

SIZE = {"image_width": 128, "image_height": 96}


def load(**parameters):
    function = FunctionLoader("masklet.integrations.cvat", None, parameters).load()
    agent_driver.set_worker_current_function(function)
    return function


def square_mask(frame):
    mask = np.zeros((96, 128), bool)
    mask[30:62, 20 + 6 * frame : 52 + 6 * frame] = True
    return mask


@pytest.fixture(scope="module")
def frames():
    """A square that moves to the right by six pixels."""
    images = []
    for frame in range(4):
        pixels = np.random.default_rng(0).integers(0, 80, (96, 128, 3), dtype=np.uint8)
        pixels[square_mask(frame)] = 230, 60, 40
        images.append(Image.fromarray(pixels))
    return images


def is_nearly(mask, expected):
    return (mask & expected).sum() > 0.95 * (mask | expected).sum()


@pytest.mark.slow
def test_an_agent_tracks_masks_polygons_and_rectangles(frames):
    function = load(function="tracking")
    assert function.spec.supported_shape_types == {"mask", "polygon", "rectangle"}
    agent_driver_tracking.AgentTrackingFunctionDriver.init_worker(iter("abc").__next__)
    shapes = [
        cvataa.TrackableShape(type="mask", points=encode_mask(square_mask(0))),
        cvataa.TrackableShape(type="polygon", points=[20, 30, 52, 30, 52, 62, 20, 62]),
        cvataa.TrackableShape(type="rectangle", points=[20, 30, 52, 62]),
    ]
    states = agent_driver_tracking._worker_job_init_tracking(1, frames[0], shapes)
    for frame, image in enumerate(frames[1:], 1):
        mask, polygon, rectangle = agent_driver_tracking._worker_job_track(1, image, states)
        assert is_nearly(decode_mask(mask.points, **SIZE), square_mask(frame))
        left = 20 + 6 * frame
        corners = np.reshape(polygon.points, (-1, 2))
        np.testing.assert_allclose([*corners.min(0), *corners.max(0)], [left, 30, left + 32, 62], atol=2)
        np.testing.assert_allclose(rectangle.points, [left, 30, left + 32, 62], atol=2)


def test_an_agent_answers_clicks_and_boxes(frames):
    function = load(function="interaction")
    interaction = agent_driver_interaction
    fields = interaction.AgentInteractionFunctionDriver.get_remote_function_fields(function.spec)
    assert fields == {"min_pos_points": 0, "min_neg_points": 0, "startswith_box_optional": True}
    interaction.AgentInteractionFunctionDriver.init_worker(None)

    def prompts(positive=(), negative=(), box=None):
        return interaction._InteractionPromptsImpl(pos_points=positive, neg_points=negative, bounding_box=box)

    (clicked,) = interaction._worker_job_interact("image", frames[0], prompts([(36.0, 45.0)], [(100.0, 10.0)]))
    boxed = interaction._worker_job_interact_from_cache("image", prompts(box=((20.0, 30.0), (52.0, 62.0))))
    for shape in (clicked, *boxed):
        assert shape.type == "mask"
        assert is_nearly(decode_mask(shape.points, **SIZE), square_mask(0))
        assert 0 <= float(shape.attributes[0].value) <= 1
    with pytest.raises(PromptError, match="nothing to segment"):
        interaction._worker_job_interact_from_cache("image", prompts())


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["mask", "polygon", "rectangle"])
def test_annotations_of_a_task_pass_the_checks_of_cvat(frames, shape):
    function = load(function="detection", label="car", shape=shape, points_per_side=6)
    labels = [models.Label(id=5, name="car", type=shape, attributes=[], sublabels=[])]
    mapper = driver._AnnotationMapper(
        logging.getLogger(), function.spec.labels, labels, allow_unmatched_labels=False, conv_mask_to_poly=False
    )
    context = driver._DetectionFunctionContextImpl(frame_name="a.png", conf_threshold=0.9)
    tags, shapes = mapper.validate_and_remap(function.detect(context, frames[0]), 3)
    assert tags == []
    assert {(one.type.value, one.label_id, one.frame) for one in shapes} == {(shape, 5, 3)}
    if shape == "mask":
        assert any(is_nearly(decode_mask(one.points, **SIZE), square_mask(0)) for one in shapes)


@pytest.mark.slow
def test_masks_become_polygons_if_cvat_asks_for_them(frames):
    context = driver._DetectionFunctionContextImpl(frame_name="a.png", conv_mask_to_poly=True)
    shapes = load(function="detection", points_per_side=4).detect(context, frames[0])
    assert {one.type.value for one in shapes} == {"polygon"}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"function": "dance"}, "function 'dance': expected one of detection, interaction, tracking"),
        ({"function": "tracking", "shade": 1}, "shade"),
        ({"function": "detection", "points": 1}, "no option points"),
    ],
)
def test_a_wrong_parameter_is_named(parameters, message):
    with pytest.raises(ConfigError, match=message):
        load(**parameters)
