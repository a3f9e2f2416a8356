"""The small network as exported folders, and the engine that they are compared with."""

import copy

import pytest

from masklet.engine import make_engine
from masklet.export import to_onnx
from masklet.processing import ImageProcessor
from masklet.segmenter import Segmenter, load

pytest.importorskip("onnxruntime", reason="needs masklet[export]")


@pytest.fixture(scope="session")
def eager(tiny_model, tiny_config):
    """Its objects are visible: with the small network as it is, all of them would be lost in the second frame."""
    model = copy.deepcopy(tiny_model)
    model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(5.0)
    return Segmenter(make_engine(model, "eager"), ImageProcessor(tiny_config.image_size))


@pytest.fixture(scope="session")
def exported(eager, tmp_path_factory):
    """The small network in the layout masklet."""
    folder = tmp_path_factory.mktemp("onnx") / "tiny"
    to_onnx(eager, folder)
    return folder


@pytest.fixture(scope="session")
def nano():
    """The embedded model, eager."""
    return load(device="cpu", dtype="float32", engine="eager")
