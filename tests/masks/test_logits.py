import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mask_shapes import bool_masks, few_examples

from masklet.masks import logits as logits_module
from masklet.masks import (
    stability_scores,
    upscale_logits,
    without_overlap,
)
from masklet.masks.logits import join_chunks, masks_per_chunk, upscaled_chunks, upscaled_masks


def test_logits_are_interpolated_between_pixel_centres():
    logits = torch.tensor([[0.0, 4.0]])
    torch.testing.assert_close(upscale_logits(logits, (1, 4)), torch.tensor([[0.0, 1.0, 3.0, 4.0]]))
    torch.testing.assert_close(upscale_logits(logits.T, (4, 2)), torch.tensor([[0.0, 1, 3, 4]] * 2).T)


def test_downscaling_does_not_antialias():
    row = torch.tensor([[9.0, 0, 0, 9, 9, 0, 0, 9]])
    torch.testing.assert_close(upscale_logits(row, (1, 2)), torch.tensor([[0.0, 0.0]]))


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_upscaling_keeps_leading_dimensions_and_returns_float32(leading, dtype):
    upscaled = upscale_logits(torch.ones(*leading, 3, 4, dtype=dtype), (7, 9))
    assert upscaled.dtype == torch.float32
    torch.testing.assert_close(upscaled, torch.ones(*leading, 7, 9))


def test_stability_is_the_iou_of_the_strict_and_the_loose_mask():
    logits = 3 * torch.randn(2, 5, 20, 30, generator=torch.Generator().manual_seed(0))
    scores = stability_scores(logits, threshold=0.5, offset=2.0)
    assert scores.shape == (2, 5)
    assert scores.dtype == torch.float32
    strict, loose = (logits > 2.5).numpy(), (logits > -1.5).numpy()
    expected = (strict & loose).sum((-2, -1)) / (strict | loose).sum((-2, -1))
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert 0.1 < scores.min() < scores.max() < 0.5, "the comparison is of something"


def test_certain_masks_are_stable_and_undecided_ones_are_not():
    logits = torch.stack([torch.full((4, 4), value) for value in (9.0, -9.0, 0.0)])
    assert stability_scores(logits).tolist() == [1, 1, 0]
    assert stability_scores(torch.zeros(0, 4, 4)).shape == (0,)
    assert stability_scores(logits, offset=0).tolist() == [1, 1, 1]


def test_a_negative_offset_is_refused():
    with pytest.raises(ValueError, match="offset must be >= 0 logits, got -1"):
        stability_scores(torch.zeros(1, 4, 4), offset=-1)


@given(bool_masks(), st.integers(0, 2**32 - 1))
@few_examples
def test_each_pixel_goes_to_the_mask_of_the_highest_logit(masks, seed):
    logits = np.random.default_rng(seed).integers(-2, 3, masks.shape).astype(np.float32)  # with equals among them
    apart = without_overlap(masks, torch.from_numpy(logits))
    np.testing.assert_array_equal(apart.any(0), masks.any(0))
    assert apart.sum(0).max(initial=0) <= 1
    assert not (apart & ~masks).any()
    for y, x in zip(*masks.any(0).nonzero(), strict=True):
        candidates = [(-logits[i, y, x], i) for i in range(len(masks)) if masks[i, y, x]]
        assert apart[:, y, x].argmax() == min(candidates)[1]


def test_low_resolution_logits_divide_overlapping_masks_where_they_cross():
    left_is_surer = torch.tensor([[[4.0, -4.0]], [[-4.0, 4.0]]])
    apart = without_overlap(np.ones((2, 3, 8), bool), left_is_surer)
    np.testing.assert_array_equal(apart[0], np.arange(8)[None].repeat(3, 0) < 4)
    np.testing.assert_array_equal(apart[1], ~apart[0])


def test_a_logit_at_a_cut_off_is_outside():
    assert stability_scores(torch.stack([torch.full((2, 2), value) for value in (1.0, -1.0)])).tolist() == [0, 1]


def test_chunks_are_as_large_as_allowed_and_together_give_all_masks(monkeypatch):
    assert [masks_per_chunk((side, side)) for side in (1024, 2048, 4096)] == [4, 1, 1]
    monkeypatch.setattr(logits_module, "CHUNK_PIXELS", 2 * 7 * 9 + 3)
    logits = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    logits[1] = 0.0
    chunks, expected = list(upscaled_chunks(logits, (7, 9))), upscale_logits(logits, (7, 9))
    assert [len(chunk) for chunk in chunks] == [2, 2, 1]
    torch.testing.assert_close(torch.cat(chunks), expected, rtol=0, atol=0)
    masks = join_chunks(upscaled_masks(logits, (7, 9)), 5, (7, 9))
    np.testing.assert_array_equal(masks, expected > 0)
    assert not masks[1].any()
    packed = join_chunks(upscaled_masks(logits, (7, 9)), 5, (7, 9), packed=True)
    np.testing.assert_array_equal(packed, masks)
