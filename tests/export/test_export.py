"""What an export refuses, and the files it writes."""

import errno
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from masklet.cli import app
from masklet.errors import CheckpointError, ConfigError
from masklet.export import to_onnx, writer
from masklet.export.graph_files import FORBIDDEN, check_model, largest_difference, trace
from masklet.export.layouts import graphs_of
from masklet.export.manifest import FINGERPRINT_KEY
from masklet.model.fingerprint import fingerprint

pytestmark = pytest.mark.xdist_group("export")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "torchscript"}, "layout is 'torchscript': expected one of masklet, transformersjs, samexporter"),
        ({"precision": "fp8"}, "precision is 'fp8': expected one of fp32, fp16, int8"),
        ({"resolution": 100}, "input size 100 does not fit the network: expected a multiple of 32"),
        ({"resolution": (64, 96), "layout": "transformersjs"}, "the layout transformersjs takes squares only"),
        ({"opset": 17}, "opset is 17: expected 18 to 22. Older ones lack layer normalisation"),
        ({"opset": 23}, "opset is 23: expected 18 to 22"),
    ],
)
def test_invalid_arguments_are_named_before_anything_is_written(eager, tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        to_onnx(eager, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(eager, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ModuleNotFoundError, match=r"exporting needs onnxscript.*pip install 'masklet\[export\]'"):
        to_onnx(eager, tmp_path / "out")


def test_the_command_explains_a_missing_package(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["export", "nano", "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, ConfigError)
    assert "pip install 'masklet[export]'" in str(result.exception)


def test_a_resolution_of_the_command_is_a_side_or_two(tmp_path):
    result = CliRunner().invoke(app, ["export", "nano", "--out", str(tmp_path), "--resolution", "1,2,3"])
    assert "expected a side, 1024, or HEIGHT,WIDTH" in str(result.exception)


@pytest.mark.parametrize("is_new", [True, False])
def test_a_full_disk_leaves_nothing_behind(eager, tmp_path, monkeypatch, is_new):
    """The second graph does not fit any more."""
    folder = tmp_path / "out"
    if not is_new:
        folder.mkdir()
        (folder / "manifest.json").write_text("kept")
    done = []

    def export(plan, network, input_hw, path, *rest):
        path.write_bytes(b"a graph")
        done.append(plan.file)
        if len(done) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return ("fp32", 1, None), {}

    monkeypatch.setattr(writer, "_export", export)
    with pytest.raises(CheckpointError, match="cannot write .*out: No space left on device"):
        to_onnx(eager, folder)
    assert [path.name for path in tmp_path.rglob("*")] == ([] if is_new else ["out", "manifest.json"])
    assert is_new or (folder / "manifest.json").read_text() == "kept"


def test_a_graph_that_differs_from_torch_is_not_written(eager, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "trace", lambda *args, **options: None)
    monkeypatch.setattr(writer, "largest_difference", lambda *args: 2e-4)
    with pytest.raises(CheckpointError, match=r"image_encoder.onnx differs from torch by 2.0e-04 .* expected 1e-04"):
        to_onnx(eager, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_folder_describes_its_graphs(exported, eager):
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["input_hw"] == [64, 64]
    assert manifest["fingerprint"] == fingerprint(eager.model.config, eager.model.state_dict().values())
    assert set(manifest["graphs"]) == {"image_encoder", "prompt_decoder", "memory_attention", "memory_encoder"}
    files = {entry["file"] for entry in manifest["graphs"].values()} | {"manifest.json", "glue.safetensors"}
    assert {path.name for path in exported.iterdir()} == files
    for entry in manifest["graphs"].values():
        model = onnx.load(exported / entry["file"])
        assert entry["bytes"] == (exported / entry["file"]).stat().st_size
        assert list(entry["inputs"]) == [value.name for value in model.graph.input]
        assert {prop.key: prop.value for prop in model.metadata_props} == {FINGERPRINT_KEY: manifest["fingerprint"]}
    assert manifest["graphs"]["memory_attention"]["inputs"]["maps"]["shape"][2:] == [16, 16]


@pytest.mark.slow
def test_graphs_are_valid_and_hold_nothing_that_runtimes_refuse(exported):
    for path in exported.glob("*.onnx"):
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, strict_mode=True)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
        operators = {node.op_type for node in model.graph.node}
        assert operators.isdisjoint(
            {*FORBIDDEN, "Sin", "Cos"} - ({"Sin", "Cos"} if "_encoder" not in path.name else set())
        )
        # OpenVINO clips int64 wrongly, so that labels of prompts would be looked up wrongly.
        kinds = {
            value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.value_info)
        }
        clipped = {kinds.get(node.input[0]) for node in model.graph.node if node.op_type == "Clip"}
        assert onnx.TensorProto.INT64 not in clipped
        types = {value.type.tensor_type.elem_type for value in model.graph.value_info}
        assert types.isdisjoint({onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128})
        assert b"/src/masklet" not in path.read_bytes(), "a stack trace of this machine"


def test_a_graph_with_a_branch_is_refused():
    text = (
        '<ir_version: 8, opset_import: ["": 18]> g (bool c, float[1] x) => (float[1] y) {y = If (c) <then_branch = t '
    )
    text += "() => (float[1] a) {a = Identity(x)}, else_branch = e () => (float[1] b) {b = Neg(x)}>}"
    with pytest.raises(CheckpointError, match="graph.onnx holds If, which common runtimes refuse"):
        check_model(onnx.parser.parse_model(text), "graph.onnx", 18)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 20])
def test_a_memory_encoder_of_any_opset_is_that_of_torch(tiny_model, opset):
    (plan,) = [plan for plan in graphs_of("masklet", "fp32", has_memory=True) if plan.name == "memory_encoder"]
    module, inputs = plan.build(tiny_model, (64, 96)).eval(), plan.example(tiny_model, (64, 96))
    model = trace(module, plan, inputs, opset=opset, fingerprint="0")
    check_model(model, plan.file, opset)
    inputs = {name: torch.cat([value] * 2) if name in plan.dynamic else value for name, value in inputs.items()}
    assert largest_difference(model, module, {**inputs, "is_prompted": torch.ones(1)}) < 1e-5


@pytest.mark.slow
def test_int8_and_fp16_shrink_the_graphs_that_may(eager, exported, tmp_path):
    kinds = {}
    for precision in ("fp16", "int8"):
        graphs = to_onnx(eager, tmp_path / precision, precision=precision)
        kinds[precision] = [graph.precision for graph in graphs]
        for graph in graphs:
            assert graph.difference < (0.01 if precision == "fp16" else 0.2), graph
    assert kinds == {"fp16": ["fp16", "fp32", "fp16", "fp32"], "int8": ["int8"] * 4}
    weights = onnx.load(tmp_path / "int8" / "image_encoder.onnx").graph.initializer
    assert any(weight.data_type == onnx.TensorProto.INT8 for weight in weights)
    weights = onnx.load(tmp_path / "fp16" / "memory_encoder.onnx").graph.initializer
    assert not any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in weights)
    assert np.isfinite(kinds["fp16"].count("fp16"))
    assert Path(tmp_path / "fp16" / "manifest.json").exists()
