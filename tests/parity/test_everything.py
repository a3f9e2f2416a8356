"""Automatic masks, against transformers' mask generation with the same weights: see tests/golden/README.md."""

import numpy as np
import pytest
from PIL import Image

from masklet.everything import generator
from masklet.masks import mask_ious

GRID = 32
QUICK_ROWS = range(24, 25)


@pytest.mark.xdist_group("everything")
@pytest.mark.parametrize(
    ("engine_name", "rows"),
    [
        pytest.param("cpu", QUICK_ROWS, id="cpu, one row"),
        pytest.param("cpu", range(GRID), id="cpu, all rows", marks=pytest.mark.slow),
        pytest.param("eager", QUICK_ROWS, id="eager, one row", marks=pytest.mark.slow),
    ],
    indirect=["engine_name"],
)
def test_automatic_masks_are_those_of_transformers(seeded_transformers_sam, golden_folder, monkeypatch, rows):
    with np.load(golden_folder / "transformers/everything.npz") as file:
        golden = dict(file)
    expected = np.isin(golden["grid_rows"], rows)
    theirs = np.unpackbits(golden["masks"][expected], axis=-1, count=golden["size_hw"][1]).astype(bool)
    with Image.open(golden_folder / "inputs/truck.jpg") as truck:
        image = truck.convert("RGB").resize((900, 600), Image.Resampling.BILINEAR)

    # transformers 5.23 makes the grid for SAM's padded square, so it covers two thirds of this image's height.
    points_in_layer, compressed = generator.points_in_layer, np.array([1, 600 / 900], np.float32)
    monkeypatch.setattr(
        generator,
        "points_in_layer",
        lambda options, layer: points_in_layer(options, layer)[rows[0] * GRID : (rows[-1] + 1) * GRID] * compressed,
    )
    ours = seeded_transformers_sam.everything(
        image, points_per_side=GRID, iou_threshold=0.64, stability_threshold=0.6, box_nms=1.1
    )

    assert len(ours) == len(theirs) == {1: 4, GRID: 31}[len(rows)]
    ious = mask_ious(ours.masks, theirs)
    partners = ious.argmax(1)
    assert sorted(partners) == list(range(len(theirs)))
    assert ious.max(1).min() > 0.99
    np.testing.assert_allclose(ours.iou_scores, golden["scores"][expected][partners], atol=5e-4)
