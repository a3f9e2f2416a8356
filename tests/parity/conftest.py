"""What the parity tests share."""

import importlib.util
import json

import pytest
import torch

import masklet


@pytest.fixture(scope="session")
def seeded_sam(shared, tmp_path_factory):
    """SAM 2.1 tiny, through one of Meta's files with the deterministic weights of the reference."""
    spec = importlib.util.spec_from_file_location("seeded_weights", shared / "reference/seeded_weights.py")
    seeded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeded)
    manifest = json.loads((shared / "reference/manifests/meta_sam2.1_hiera_tiny.json").read_text())
    path = tmp_path_factory.mktemp("meta") / "sam2.1_hiera_tiny.pt"
    torch.save({"model": seeded.seeded_state_dict(manifest)}, path)
    return masklet.load(path, device="cpu")
