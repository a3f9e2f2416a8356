"""The layouts for other programs, fed as these feed them."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from masklet.export import to_onnx
from masklet.export.boxes import FRONT
from masklet.model.prompt_encoder import Prompts

pytestmark = pytest.mark.xdist_group("export")

NODE = Path(__file__).parents[1] / "node"


def run_front(points, labels, boxes):
    session = onnxruntime.InferenceSession(
        onnx.parser.parse_model(FRONT.format(opset=18)).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    given = (np.asarray(points, np.float32), np.asarray(labels, np.int64), np.asarray(boxes, np.float32))
    return session.run(None, dict(zip(("input_points", "input_labels", "input_boxes"), given, strict=True)))


def test_points_and_boxes_become_labelled_points():
    points, labels = run_front([[[[7, 8]], [[9, 9]]]], [[[1], [0]]], [[[1, 2, 3, 4], [5, 6, 7, 8]]])
    assert points.tolist() == [[[[1, 2], [3, 4], [7, 8]], [[5, 6], [7, 8], [9, 9]]]]
    assert labels.tolist() == [[[2, 3, 1], [2, 3, 0]]]


def test_points_alone_are_joined_by_padding():
    points, labels = run_front([[[[7, 8]], [[9, 9]]]], [[[1], [0]]], np.zeros((1, 0, 4)))
    assert labels.tolist() == [[[-10, -10, 1], [-10, -10, 0]]]
    assert points[..., 2:, :].tolist() == [[[[7, 8]], [[9, 9]]]]


def test_boxes_alone_come_with_no_points():
    points, labels = run_front(np.zeros((1, 1, 0, 2)), np.zeros((1, 2, 0)), [[[1, 2, 3, 4], [5, 6, 7, 8]]])
    assert points.tolist() == [[[[1, 2], [3, 4]], [[5, 6], [7, 8]]]]
    assert labels.tolist() == [[[2, 3], [2, 3]]]


@pytest.fixture(scope="module")
def folder(eager, tmp_path_factory):
    """The small network for transformers.js."""
    folder = tmp_path_factory.mktemp("web") / "tiny"
    to_onnx(eager, folder, layout="transformersjs")
    return folder


@pytest.mark.slow
def test_transformersjs_finds_the_names_and_shapes_it_knows(folder):
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    graphs = {"onnx/vision_encoder.onnx", "onnx/prompt_encoder_mask_decoder.onnx"}
    assert files == graphs | {"config.json", "preprocessor_config.json"}
    assert json.loads((folder / "config.json").read_text())["model_type"] == "sam2"
    decoder = onnx.load(folder / "onnx/prompt_encoder_mask_decoder.onnx")
    embeddings = [f"image_embeddings.{level}" for level in range(3)]
    names = [value.name for value in decoder.graph.input]
    assert set(names) == {"input_points", "input_labels", "input_boxes", *embeddings}
    outputs = {value.name for value in decoder.graph.output}
    assert outputs == {"iou_scores", "pred_masks", "object_score_logits"}
    encoder = onnx.load(folder / "onnx/vision_encoder.onnx")
    assert [value.name for value in encoder.graph.output] == embeddings


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("case", ["points", "boxes", "both"])
def test_prompts_of_transformersjs_give_the_masks_of_eager(folder, eager, image, case, batch):
    """Also without points (N = 0) and without boxes (0 of them)."""
    pixels = torch.cat([eager.image_processor.pixel_values(image)] * batch)
    providers = ["CPUExecutionProvider"]
    encoder = onnxruntime.InferenceSession(folder / "onnx/vision_encoder.onnx", providers=providers)
    maps = encoder.run(None, {"pixel_values": pixels.numpy()})
    points = torch.tensor([[[[20.0, 30], [9, 9]], [[40, 12], [50, 50]], [[1, 2], [3, 4]]]]).repeat(batch, 1, 1, 1)
    labels = torch.tensor([[[1, 0], [1, 1], [0, 1]]]).repeat(batch, 1, 1)
    boxes = torch.tensor([[[10.0, 10, 40, 30], [0, 0, 20, 20], [5, 9, 60, 60]]]).repeat(batch, 1, 1)
    expected = Prompts(points, labels, boxes)
    if case == "points":
        boxes, expected = boxes[:, :0], Prompts(points, labels)
    elif case == "boxes":
        points, labels, expected = points[:, :1, :0], labels[:, :, :0], Prompts(boxes=boxes)
    with torch.inference_mode():
        features = eager.engine.encode(pixels)
        decoded = eager.engine.decode(features, expected, multimask=True)
    decoder = onnxruntime.InferenceSession(folder / "onnx/prompt_encoder_mask_decoder.onnx", providers=providers)
    names = ("input_points", "input_labels", "input_boxes", *(f"image_embeddings.{level}" for level in range(3)))
    given = dict(zip(names, (points.numpy(), labels.numpy(), boxes.numpy(), *maps), strict=True))
    outputs = ("iou_scores", "pred_masks", "object_score_logits")
    for ours, theirs in zip(
        decoder.run(outputs, given), (decoded.iou_scores, decoded.logits, decoded.object_scores), strict=True
    ):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.slow
def test_transformersjs_gives_the_masks_of_eager(folder, eager, tmp_path):
    """The real package, in Node."""
    if shutil.which("node") is None:
        pytest.skip("needs Node")
    if not (NODE / "node_modules").is_dir():
        pytest.skip("needs transformers.js: npm install --ignore-scripts --prefix tests/node")
    # Of the size of the input, since transformers.js resizes in another way.
    image = np.random.default_rng(0).integers(0, 100, (64, 64, 3), dtype=np.uint8)
    image[10:30, 20:50] += 150
    Image.fromarray(image).save(tmp_path / "image.png")
    cases = {
        "points": {"input_points": [[[[30, 20], [5, 5]], [[60, 40], [50, 44]]]], "input_labels": [[[1, 0], [1, 1]]]},
        "boxes": {"input_boxes": [[[20, 10, 50, 30], [0, 0, 30, 48]]]},
    }
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    command = ["node", NODE / "predict.mjs", folder, tmp_path / "image.png", tmp_path / "cases.json", tmp_path, "fp32"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    encoded = eager.image(image)
    expected = {
        "points": encoded.predict(points=[[(30, 20), (5, 5, 0)], [(60, 40), (50, 44)]], candidates=True),
        "boxes": encoded.predict(boxes=cases["boxes"]["input_boxes"][0], candidates=True),
    }
    for name, result in json.loads((tmp_path / "result.json").read_text()).items():
        theirs = expected[name]
        masks = np.fromfile(tmp_path / f"{name}.bin", np.uint8).reshape(result["shape"]) > 0
        assert (masks == theirs.masks).mean() > 0.999
        np.testing.assert_allclose(
            np.reshape(result["iou_scores"], theirs.iou_scores.shape), theirs.iou_scores, atol=1e-4
        )


@pytest.mark.slow
def test_samexporters_consumers_feed_by_position(eager, image, tmp_path):
    to_onnx(eager, tmp_path, layout="samexporter")
    encoder, decoder = (
        onnxruntime.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("encoder", "decoder")
    )
    maps = ["high_res_feats_0", "high_res_feats_1"]
    assert [value.name for value in encoder.get_inputs()] == ["image"]
    assert [value.name for value in encoder.get_outputs()] == [*maps, "image_embed"]
    names = [
        "image_embed",
        "high_res_feats_0",
        "high_res_feats_1",
        "point_coords",
        "point_labels",
        "mask_input",
        "has_mask_input",
    ]
    assert [value.name for value in decoder.get_inputs()] == names
    assert [value.name for value in decoder.get_outputs()] == ["masks", "iou_predictions"]
    pixels = eager.image_processor.pixel_values(image)
    fine, middle, embedding = encoder.run(None, {"image": pixels.numpy()})
    points = np.array([[[20, 30], [9, 9]], [[40, 12], [50, 50]]], np.float32)
    labels = np.array([[1, 0], [2, 3]], np.float32)
    mask = np.random.default_rng(0).normal(size=(1, 1, 16, 16)).astype(np.float32)
    for has_mask in (0, 1):
        fed = (embedding, fine, middle, points, labels, mask, np.array([has_mask], np.float32))
        masks, scores = decoder.run(None, dict(zip(names, fed, strict=True)))
        prompts = Prompts(
            torch.from_numpy(points)[None],
            torch.from_numpy(labels).long()[None],
            masks=torch.from_numpy(mask).expand(1, 2, -1, -1) if has_mask else None,
        )
        with torch.inference_mode():
            decoded = eager.engine.decode(eager.engine.encode(pixels), prompts, multimask=True)
        np.testing.assert_allclose(masks, decoded.logits[0], atol=1e-4 * float(decoded.logits.abs().max()))
        np.testing.assert_allclose(scores, decoded.iou_scores[0], atol=1e-4)
