"""The encoder that passes rectangles of windows through several blocks, against the plain one."""

from dataclasses import replace

import pytest
import torch
from engine.conftest import WIDE, assert_close, random_model

from masklet.engine import CpuEngine, EagerEngine
from masklet.engine.cpu import image_encoder
from masklet.engine.cpu.image_encoder import _rectangles


def encoder(**changes):
    model = random_model(replace(WIDE, image_encoder=replace(WIDE.image_encoder, **changes)))
    return EagerEngine(model), CpuEngine(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"window_size_per_stage": (8, 4, 2, 1)},  # one window after another
        {"window_size_per_stage": (14, 6, 6, 5)},  # windows that do not fill the map
        {"global_attention_blocks": (3,)},  # a stage that begins with global attention
        {"global_attention_blocks": (0, 7)},
        {"blocks_per_stage": (2, 1, 4, 3), "global_attention_blocks": (4,)},
    ],
    ids=str,
)
@pytest.mark.parametrize("tokens", [(2048, 256), (256, 16), (40, 2)], ids=str)
def test_blocks_of_all_kinds_agree_in_rectangles_of_all_sizes(changes, tokens, monkeypatch):
    monkeypatch.setattr(image_encoder, "MOST_TOKENS", tokens[0])
    monkeypatch.setattr(image_encoder, "FEWEST_TOKENS", tokens[1])
    eager, cpu = encoder(**changes)
    pixels = torch.randn(1, 3, 96, 160, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        for ours, expected in zip(cpu.encode(pixels), eager.encode(pixels), strict=True):
            assert_close(ours, expected)


@pytest.mark.parametrize("map_hw", [(256, 256), (64, 64), (24, 40), (1, 1)])
@pytest.mark.parametrize("window", [2, 8, 14, 64])
def test_rectangles_of_whole_windows_tile_the_map(map_hw, window):
    covered = torch.zeros(map_hw, dtype=torch.int64)
    for rows, columns in _rectangles(map_hw, window):
        covered[rows, columns] += 1
        for part, size in ((rows, map_hw[0]), (columns, map_hw[1])):
            assert part.start % window == 0
            assert part.stop % window == 0 or part.stop == size
    assert (covered == 1).all()
