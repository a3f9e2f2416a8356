"""Exported folders without torch, against the eager engine."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis.strategies import integers

import masklet
from masklet.errors import CheckpointError, ConfigError, DeviceError, PromptError
from masklet.export.runtime.processing import ArrayProcessor
from masklet.export.runtime.track import ObjectResult, ResultBytes
from masklet.export.runtime.tracking import rounded_to_bfloat16
from masklet.masks import upscale_logits
from masklet.masks.resizing import reduced, upscaled

pytestmark = pytest.mark.xdist_group("export")


@pytest.fixture(scope="module")
def onnx(exported):
    return masklet.load(exported, engine="onnx", threads=1)


@pytest.fixture(scope="module")
def film():
    """(14, 48, 80, 3): two rectangles that move."""
    frames = np.random.default_rng(3).integers(0, 60, (14, 48, 80, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        frame[8:24, 4 + 3 * index : 24 + 3 * index] += 150
        frame[28:42, 50 - 2 * index : 66 - 2 * index, 0] += 180
    return frames


# Arithmetic


@given(h=integers(2, 40), w=integers(2, 40), height=integers(2, 90), width=integers(2, 90))
def test_resizing_is_that_of_torch(h, w, height, width):
    values = np.random.default_rng(h * w).normal(size=(h, w)).astype(np.float32)
    expected = upscale_logits(torch.from_numpy(values), (height, width)).numpy()
    np.testing.assert_allclose(upscaled(values, (height, width)), expected, atol=2e-5)
    expected = F.interpolate(torch.from_numpy(values)[None, None], (height, width), mode="bilinear", antialias=True)
    np.testing.assert_allclose(reduced(values, (height, width)), expected[0, 0].numpy(), atol=2e-5)


def test_memories_are_rounded_as_torch_rounds_to_bfloat16():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    values[:3] = np.array([0x3F808000, 0x3F818000, 0], np.uint32).view(np.float32)  # ties, to even
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(rounded_to_bfloat16(values), expected)


def test_a_result_returns_from_its_bytes():
    numbers = np.random.default_rng(0)
    result = ObjectResult(
        numbers.normal(size=(3, 5)).astype(np.float32), 0.5, -2.0, numbers.normal(size=8).astype(np.float32)
    )
    packing = ResultBytes((3, 5), 8)
    returned = packing.unpack(packing.pack(result))
    np.testing.assert_array_equal(returned.logits, result.logits)
    np.testing.assert_array_equal(returned.pointer, result.pointer)
    assert (returned.iou_score, returned.object_score) == (0.5, -2.0)


@pytest.mark.slow
def test_pixels_are_prepared_as_with_torch(onnx, eager, image):
    processor = ArrayProcessor(onnx.network.manifest)
    for name in ("pixel_values", "frame_values"):
        expected = getattr(eager.image_processor, name)(image).numpy()
        np.testing.assert_allclose(getattr(processor, name)(image), expected, atol=1e-5)


# Errors


def test_a_folder_that_is_no_export_is_refused(tmp_path, tiny_folder):
    with pytest.raises(CheckpointError, match="is no folder: engine 'onnx' needs one of the layout masklet"):
        masklet.load(tmp_path / "missing", engine="onnx")
    with pytest.raises(CheckpointError, match="is not an exported folder"):
        masklet.load(tiny_folder, engine="onnx")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/vision_encoder.onnx").touch()
    with pytest.raises(CheckpointError, match="is an export for other programs"):
        masklet.load(tmp_path, engine="onnx")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot read"), ("[]", "is not of the format"), ('{"format": "masklet-onnx-1"}', "is damaged")],
)
def test_a_damaged_manifest_is_refused(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        masklet.load(tmp_path, engine="onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_hw": [0, 64]}, "input_hw is"),
        ({"image_std": [0.2, 0, 0.2]}, "image_std is 0: expected a number"),
        ({"image_mean": [0.5, 0.5]}, "image_mean has 2 numbers: expected three"),
        ({"hidden_size": "32"}, "hidden_size is '32': expected a whole number"),
        ({"everything": {"iou_threshold": None}}, "iou_threshold is None: expected a finite number"),
        ({"everything": 0.8}, "is damaged"),
        ({"graphs": []}, "is damaged"),
        ({"graphs": {"image_encoder": {"file": 3}}}, "the file of the graph image_encoder is 3"),
        ({"graphs": {"image_encoder": {"file": "a.onnx"}}}, "is damaged .'prompt_decoder'"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(tmp_path, change, message):
    manifest = {
        "format": "masklet-onnx-1",
        "masklet": "0",
        "fingerprint": "x",
        "input_hw": [64, 64],
        "image_mean": [0.5] * 3,
        "image_std": [0.2] * 3,
        "rescale_factor": 1 / 255,
        "hidden_size": 32,
        "memory_channels": 16,
        "num_maskmem": 7,
        "has_memory": False,
        "replaces_unstable": True,
        "everything": {},
        "opset": 18,
        "graphs": {},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(CheckpointError, match=message):
        masklet.load(tmp_path, engine="onnx")


def test_options_of_other_engines_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="engine 'onnx' was given resolution: expected a folder and provider"):
        masklet.load(tmp_path, engine="onnx", resolution=512)
    with pytest.raises(ConfigError, match="engine 'onnx' was given a device"):
        masklet.load(tmp_path, "cpu", engine="onnx")
    with pytest.raises(ConfigError, match="engine 'onnx' needs an exported folder"):
        masklet.load(engine="onnx")
    with pytest.raises(ConfigError, match="threads is 0: expected"):
        masklet.load(tmp_path, engine="onnx", threads=0)


def test_an_exported_folder_says_how_it_is_loaded(tmp_path):
    (tmp_path / "image_encoder.onnx").touch()
    with pytest.raises(
        CheckpointError, match="expected a model folder. An exported folder is loaded with engine='onnx'"
    ):
        masklet.load(tmp_path)


@pytest.mark.slow
def test_a_provider_that_is_not_there_is_named(exported):
    with pytest.raises(DeviceError, match="provider 'nope' is not available: this onnxruntime .* CPUExecutionProvider"):
        masklet.load(exported, engine="onnx", provider="nope")


@pytest.mark.slow
def test_a_graph_of_another_model_or_a_damaged_one_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "mixed")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "0123456789abcdef"}))
    with pytest.raises(CheckpointError, match="image_encoder.onnx is of another model"):
        masklet.load(folder, engine="onnx")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "glue.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot load .*glue.safetensors"):
        masklet.load(folder, engine="onnx")
    (folder / "image_encoder.onnx").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot load .*image_encoder.onnx"):
        masklet.load(folder, engine="onnx")
    (folder / "image_encoder.onnx").unlink()
    with pytest.raises(CheckpointError, match="image_encoder.onnx is missing"):
        masklet.load(folder, engine="onnx")


# Without torch


@pytest.mark.slow
def test_torch_is_never_imported(exported, tmp_path):
    """As in an environment without torch: importing it fails."""
    script = f"""
import sys
sys.modules["torch"] = None  # import torch raises ImportError
import numpy as np
import masklet
try:
    masklet.load()
except ModuleNotFoundError as error:
    assert "PyTorch is not installed: pip install torch. Without it" in str(error), error
sam = masklet.load({str(exported)!r}, engine="onnx", threads=1)
print(sam)
image = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)
masks = sam.image(image).predict(points=[(30, 20)])
masks.without_overlap().save({str(tmp_path / "masks.png")!r})
masklet.Masks.from_coco(masks.to_coco(), size_hw=(48, 80))
sam.image(image).predict(points=[(30, 20)], mask=np.ones((48, 80), bool), fill_holes=3).overlay()
sam.everything(image, points_per_side=2, crops=1, iou_threshold=0, stability_threshold=0)
video = sam.video([image] * 3)
video.prompt(0, "cup", box=(10, 5, 40, 30))
assert len(list(video.track())) == 3
video.write({str(tmp_path / "masks.jsonl")!r})
stream = sam.stream()
stream.push(image, {{"cup": {{"points": [(30, 20)]}}}})
stream.push(image)
print(stream.correct("cup", points=[(31, 20)]).object_ids)
print(stream)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"OnnxSegmenter({exported}, 64×64, CPUExecutionProvider)",
        "('cup',)",
        "OnnxStream(2 frames, 1 object)",
    ]


# Parity with the eager engine


def ious(ours, theirs):
    union = (ours | theirs).sum((-2, -1))
    return np.where(union > 0, (ours & theirs).sum((-2, -1)) / np.maximum(union, 1), 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "prompts",
    [
        {"points": [(30, 20)]},
        {"points": [[(30, 20)], [(60, 40), (5, 5, 0)]]},
        {"boxes": [(20, 10, 50, 30), (0, 0, 30, 48)]},
        {"box": (20, 10, 50, 30), "points": [(30, 20)], "fill_holes": 9},
        {"points": [(30, 20)], "candidates": True},
        {"boxes": np.zeros((0, 4))},
    ],
)
def test_predictions_are_those_of_eager(onnx, eager, image, prompts):
    ours, theirs = onnx.image(image).predict(**prompts), eager.image(image).predict(**prompts)
    assert ours.masks.shape == theirs.masks.shape
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-4 * np.abs(theirs.logits).max(initial=1))
    np.testing.assert_allclose(ours.iou_scores, theirs.iou_scores, atol=1e-4)
    assert (ious(ours.masks, theirs.masks) > 0.99).all()


@pytest.mark.slow
def test_masks_are_refined_as_by_eager(onnx, eager, image):
    first = eager.image(image).predict(boxes=[(20, 10, 50, 30), (0, 0, 30, 48)])
    for mask in (first.logits, first.masks):
        ours, theirs = (sam.image(image).predict(mask=mask, points=[[(30, 20)], [(9, 9)]]) for sam in (onnx, eager))
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-4 * np.abs(theirs.logits).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"crops": 1, "crop_nms": 1.0, "min_area": 5},
        {"refine": True},
        {"candidates": False, "mask_threshold": 0.5},
        {"point_grids": [[(0.2, 0.3), (0.6, 0.9)]]},
    ],
)
def test_automatic_masks_are_those_of_eager(onnx, eager, image, options):
    points = {} if "point_grids" in options else {"points_per_side": 3}
    options = {**points, "iou_threshold": 0.1, "stability_threshold": 0.1, "box_nms": 1.0, **options}
    ours, theirs = onnx.everything(image, **options), eager.everything(image, **options)
    assert len(ours) == len(theirs) >= 1
    np.testing.assert_allclose(ours.iou_scores, theirs.iou_scores, atol=1e-4)
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=2e-4 * np.abs(theirs.logits).max())
    assert (ious(ours.masks, theirs.masks) > 0.99).all()


def track_and_correct(sam, film):
    """Two objects, a correction, an object that is added late, and the way back; the results by frame."""
    video, results = sam.video(film), []
    video.prompt(0, "left", points=[(12, 16)])
    video.prompt(0, "right", box=(50, 28, 66, 42))
    results += video.track(end=8)
    video.prompt(4, "left", points=[(60, 40, 0)])
    mask = np.zeros(film.shape[1:3], bool)
    mask[10:22, 20:40] = True
    video.prompt(6, "late", mask=mask)
    results += video.track(start=3)
    video.remove("right")
    results += video.track(start=12, end=2, direction="backward", every=2)
    return results


@pytest.mark.slow
def test_a_video_is_tracked_as_by_eager(onnx, eager, film):
    ours, theirs = track_and_correct(onnx, film), track_and_correct(eager, film)
    assert [(r.index, r.object_ids) for r in ours] == [(r.index, r.object_ids) for r in theirs]
    assert len(ours) == 9 + 11 + 6
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.object_scores, other.object_scores, atol=1e-2)
        assert (ious(one.masks.masks, other.masks.masks) >= 0.99).all()


@pytest.mark.slow
def test_300_frames_are_tracked_as_by_eager(onnx, eager):
    """Two objects, a correction, and an object that is added late: differences do not add up."""
    # Large enough that a pixel on a border, where logits are almost 0, is less than a thousandth of a mask.
    frames = np.random.default_rng(3).integers(0, 60, (300, 192, 320, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        left = round(80 + 72 * np.sin(index / 20))
        frame[32:96, left : left + 80] += 150
        frame[112:168, 224 - left : 288 - left, 0] += 180

    def track(sam):
        video = sam.video(frames)
        video.prompt(0, "left", points=[(120, 64)])
        video.prompt(0, "right", box=(144, 112, 208, 168))
        yield from video.track(end=99)
        video.prompt(90, "left", points=[(304, 16, 0)])
        video.prompt(100, "late", box=(160, 80, 280, 180))
        yield from video.track(start=91)

    lowest, areas = [], []
    for ours, theirs in zip(track(onnx), track(eager), strict=True):
        assert (ours.index, ours.object_ids) == (theirs.index, theirs.object_ids)
        lowest.append(ious(ours.masks.masks, theirs.masks.masks).min())
        areas.append(theirs.masks.masks.mean((1, 2)).min())
    assert len(lowest) == 100 + 209
    assert min(areas) > 0.01  # no object is lost
    assert min(lowest) >= 0.999


@pytest.mark.slow
def test_a_stream_is_tracked_as_by_eager(onnx, eager, film):
    streams = [sam.stream() for sam in (onnx, eager)]
    for index, frame in enumerate(film):
        prompts = {0: {"left": {"points": [(12, 16)]}}, 5: {"right": {"box": (40, 28, 56, 42)}}}.get(index)
        ours, theirs = (stream.push(frame, prompts) for stream in streams)
        assert ours.object_ids == theirs.object_ids
        assert (ious(ours.masks.masks, theirs.masks.masks) >= 0.99).all()
    ours, theirs = (stream.correct("left", points=[(60, 40, 0)]) for stream in streams)
    assert (ious(ours.masks.masks, theirs.masks.masks) >= 0.99).all()
    for stream in streams:
        with pytest.raises(PromptError, match="frame 14 is at 0 s, and the frame before it at"):
            stream.push(film[0], time=0.0)


@pytest.mark.slow
def test_prompts_are_checked_as_by_eager(onnx, film):
    video = onnx.video(film)
    for prompt, message in (
        ({"points": [(500, 3)]}, "outside the image"),
        ({"mask": np.zeros((48, 80))}, "mask is empty"),
        ({}, "nothing to segment"),
    ):
        with pytest.raises(PromptError, match=message):
            video.prompt(0, "cup", **prompt)
    with pytest.raises(PromptError, match="nothing to track"):
        video.track()
