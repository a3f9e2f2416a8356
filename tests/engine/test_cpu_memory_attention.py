"""Folded attention to memory against the plain one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masklet.engine.cpu.folded_attention import FoldedAttention
from masklet.model.memory_attention import MemoryTokens, RotaryAttention
from masklet.model.positions import axial_rotations


def folded(attention, q, k, v, num_pointers, map_hw):
    rotations = axial_rotations(map_hw, attention.q_proj.out_features, torch.device("cpu"))
    return read_folded(FoldedAttention(attention, rotations, map_hw), q, MemoryTokens(k, v, num_pointers, None))


def read_folded(attention, q, memory):
    """All queries, in two blocks."""
    keys, middle = attention.arrange(memory), (q.shape[1] + 1) // 2
    blocks = [rows for rows in (slice(0, middle), slice(middle, q.shape[1])) if rows.start < rows.stop]
    return torch.cat([attention(q[0, rows], rows, keys=keys, memory=memory) for rows in blocks])[None]


def plain(attention, q, k, v, num_pointers, map_hw):
    rotations = axial_rotations(map_hw, attention.q_proj.out_features, torch.device("cpu"))
    return attention(q, k, v, rotations, num_pointers)


@given(
    st.tuples(st.integers(1, 7), st.integers(1, 7)), st.integers(1, 4), st.integers(0, 9), st.sampled_from([8, 16, 32])
)
def test_folded_attention_is_attention(map_hw, maps, num_pointers, dim):
    torch.manual_seed(0)
    attention, cells = RotaryAttention(dim, memory_dim=8).requires_grad_(False), map_hw[0] * map_hw[1]
    tokens = maps * cells + num_pointers
    given = (attention, 3 * torch.randn(1, cells, dim), torch.randn(1, tokens, 8), torch.randn(1, tokens, 8))
    expected = plain(*given, num_pointers, map_hw)
    torch.testing.assert_close(folded(*given, num_pointers, map_hw), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row", [1, 3])
def test_scores_far_above_those_of_the_first_row_do_not_overflow(row):
    torch.manual_seed(0)
    attention, map_hw = RotaryAttention(16, memory_dim=8).requires_grad_(False), (4, 3)
    q, k, v = torch.randn(1, 12, 16), torch.randn(1, 12, 8), torch.randn(1, 12, 8)
    k[:, 3 * row : 3 * row + 3] *= 5_000
    expected = plain(attention, q, k, v, 0, map_hw)
    assert expected.isfinite().all()
    torch.testing.assert_close(folded(attention, q, k, v, 0, map_hw), expected)


@pytest.mark.parametrize("above", [86.0, 87.0, 88.0, 88.5])
def test_a_sum_of_weights_that_overflows_alone_is_noticed(above):
    """Twenty equal keys whose weights are finite and whose sum is not, with values so small that theirs is finite."""
    dim, map_hw = 8, (2, 20)
    attention = RotaryAttention(dim, memory_dim=dim).requires_grad_(False)
    for layer in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
        layer.weight.copy_(torch.eye(dim))
        layer.bias.zero_()
    rotations = (torch.ones(40, dim // 2), torch.zeros(40, dim // 2))  # nothing is rotated
    q = torch.zeros(1, 40, dim)
    q[..., 0] = dim**0.5
    k, v = torch.zeros(1, 40, dim), torch.full((1, 40, dim), 0.05)
    k[:, 20:, 0] = above  # the second row
    expected = attention(q, k, v, rotations)
    torch.testing.assert_close(expected, torch.full_like(expected, 0.05))
    found = read_folded(FoldedAttention(attention, rotations, map_hw), q, MemoryTokens(k, v, 0, None))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("dim", "maps", "map_hw", "is_faster"),
    [
        (256, 7, (64, 64), True),
        (256, 2, (64, 64), True),
        (256, 1, (64, 64), False),
        (256, 7, (32, 32), True),
        (128, 7, (32, 32), False),
    ],
)
def test_folding_is_for_memory_that_is_long_and_narrow(dim, maps, map_hw, is_faster):
    attention = RotaryAttention(dim, memory_dim=64).requires_grad_(False)
    rotations = axial_rotations(map_hw, dim, torch.device("cpu"))
    assert FoldedAttention(attention, rotations, map_hw).is_faster(maps * map_hw[0] * map_hw[1]) is is_faster
