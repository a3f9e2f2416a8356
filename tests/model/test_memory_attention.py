"""The CPU's way to the same attention."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masklet.model.memory_attention import MemoryAttention, RotaryAttention
from masklet.model.positions import axial_rotations, sine_positions_2d


@given(
    st.tuples(st.integers(1, 7), st.integers(1, 7)), st.integers(1, 4), st.integers(0, 9), st.sampled_from([8, 16, 32])
)
def test_folded_attention_is_attention(map_hw, maps, num_pointers, dim):
    torch.manual_seed(0)
    attention, cells = RotaryAttention(dim, memory_dim=8).requires_grad_(False), map_hw[0] * map_hw[1]
    rotations = axial_rotations(map_hw, dim, torch.device("cpu"))
    q, tokens = 3 * torch.randn(1, cells, dim), maps * cells + num_pointers
    k, v = torch.randn(1, tokens, 8), torch.randn(1, tokens, 8)
    expected = attention(q, k, v, rotations, num_pointers)
    torch.testing.assert_close(attention.fold(q, k, v, rotations, num_pointers, map_hw), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lower_row", [1, 3])
def test_scores_that_tower_above_those_of_the_first_row_are_computed_plainly(lower_row):
    torch.manual_seed(0)
    attention, map_hw = RotaryAttention(16, memory_dim=8).requires_grad_(False), (4, 3)
    rotations = axial_rotations(map_hw, 16, torch.device("cpu"))
    q, k, v = torch.randn(1, 12, 16), torch.randn(1, 12, 8), torch.randn(1, 12, 8)
    k[:, 3 * lower_row : 3 * lower_row + 3] *= 5_000
    expected = attention(q, k, v, rotations)
    assert expected.isfinite().all()
    torch.testing.assert_close(attention.fold(q, k, v, rotations, 0, map_hw), expected)


@pytest.mark.parametrize(
    ("dim", "maps", "map_hw", "pays"),
    [
        (256, 7, (64, 64), True),
        (256, 2, (64, 64), True),
        (256, 1, (64, 64), False),
        (256, 7, (32, 32), True),
        (128, 7, (32, 32), False),
    ],
)
def test_folding_pays_where_memory_is_long_and_narrow(dim, maps, map_hw, pays):
    assert RotaryAttention(dim, memory_dim=64).folding_pays(maps * map_hw[0] * map_hw[1], map_hw) is pays


def test_inference_folds_and_gives_what_training_gives(monkeypatch):
    torch.manual_seed(0)
    attention = MemoryAttention(dim=256, memory_dim=64, mlp_dim=64, num_layers=2).requires_grad_(False)
    map_hw, objects, maps = (4, 5), 3, 60
    features = torch.randn(1, 20, 256)
    memory, positions = (torch.randn(objects, maps * 20 + 16, 64) for _ in range(2))
    given = (features, sine_positions_2d(map_hw, 256, features.device), memory, positions)
    expected = attention(*given, map_hw=map_hw, num_pointers=16)
    calls = []
    fold = RotaryAttention.fold
    monkeypatch.setattr(RotaryAttention, "fold", lambda *a: calls.append(1) or fold(*a))
    with torch.inference_mode():
        found = attention(*given, map_hw=map_hw, num_pointers=16)
    assert len(calls) == objects * 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
