"""Everything in an image, against transformers' mask generation with the same weights."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image

import masklet
from masklet.engine import make_engine
from masklet.everything import generator as everything
from masklet.masks import decode_rle, mask_ious
from masklet.processing import Sam2ImageProcessor
from masklet.segmenter import Segmenter


@pytest.mark.slow
def test_the_masks_are_those_of_transformers(shared, monkeypatch):
    golden = json.loads((shared / "reference/transformers_everything.json").read_text())
    spec = importlib.util.spec_from_file_location("seeded_weights", shared / "reference/seeded_weights.py")
    seeded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeded)
    manifest = json.loads((shared / "reference/manifests/transformers_sam2.1_hiera_tiny.json").read_text())
    model = masklet.Sam2Model.from_tensors(masklet.Sam2Config(), seeded.seeded_state_dict(manifest))
    with Image.open(shared / "data/samples/images/truck.jpg") as truck:
        image = truck.convert("RGB").resize((900, 600), Image.Resampling.BILINEAR)
    # transformers 5.23 lays the grid as for SAM's padded square: of this image's height it clicks on two thirds.
    whole = everything.make_grid
    monkeypatch.setattr(everything, "make_grid", lambda side: whole(side) * torch.tensor([1, 600 / 900]))
    ours = Segmenter(make_engine(model), Sam2ImageProcessor()).everything(
        image, iou_threshold=0.64, stability_threshold=0.6, box_nms=1.1
    )
    theirs = decode_rle([{"size": golden["size"], "counts": counts} for counts in golden["rle"]])
    assert len(ours) == len(theirs) == 31
    ious = mask_ious(ours.masks, theirs)
    partners = ious.argmax(1)
    assert sorted(partners) == list(range(31))
    assert ious.max(1).min() > 0.99
    np.testing.assert_allclose(ours.iou_scores, np.array(golden["scores"])[partners], atol=5e-4)
