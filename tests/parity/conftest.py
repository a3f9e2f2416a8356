"""Models with the weights that the references used."""

import pytest
import torch
from parity.seeded import seeded_weights

import masklet
from masklet.config import Sam2Config
from masklet.export import to_onnx
from masklet.model.sam2 import Sam2Model

META_WEIGHTS = "e52582cb8d90091a6140c3fc1617e330531e557fe9f5f293b45e687bcfe9ae33"
TRANSFORMERS_WEIGHTS = "851be74980ed6dd3fb7e181cd2ff02c53d404974d5fc49f5442e107fa622f704"


@pytest.fixture(scope="session")
def seeded_sam(golden_folder, segmenter_of, tmp_path_factory):
    """SAM 2.1 tiny, loaded from a file in Meta's layout."""
    tensors = seeded_weights(golden_folder / "meta/manifests/sam2.1_hiera_tiny.json", META_WEIGHTS)
    path = tmp_path_factory.mktemp("meta") / "sam2.1_hiera_tiny.pt"
    torch.save({"model": tensors}, path)
    del tensors
    model = Sam2Model.from_pretrained(path).requires_grad_(False)
    path.unlink()
    return segmenter_of(model)


@pytest.fixture(scope="session", params=["eager", pytest.param("onnx", marks=pytest.mark.slow)])
def seeded_runtime(request, seeded_sam, tmp_path_factory):
    """The same network as it is, and exported to ONNX and run without torch."""
    if request.param == "eager":
        return seeded_sam
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="needs masklet[export]")
    folder = tmp_path_factory.mktemp("onnx") / "tiny"
    to_onnx(seeded_sam, folder, check=False)
    return masklet.load(folder, engine="onnx", threads=torch.get_num_threads())


@pytest.fixture(scope="session")
def seeded_transformers_sam(golden_folder, segmenter_of):
    """SAM 2.1 tiny, with weights drawn for the names of transformers."""
    tensors = seeded_weights(golden_folder / "transformers/manifest.json", TRANSFORMERS_WEIGHTS)
    return segmenter_of(Sam2Model.from_tensors(Sam2Config(), tensors).requires_grad_(False))
