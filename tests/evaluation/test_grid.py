"""The image of the best and the worst objects."""

import numpy as np

from masklet.evaluation.grid import CAPTION_PX, COLUMNS, MASK_COLOUR, TILE_PX, TRUTH_COLOUR, Extremes, around, draw_tile

IMAGE = np.full((100, 200, 3), 128, np.uint8)
TRUTH = np.zeros((100, 200), bool)
TRUTH[40:60, 100:140] = True


def count(image, colour):
    return int((np.array(image) == colour).all(-1).sum())


def test_a_tile_is_a_square_around_the_object():
    assert around(TRUTH) == (91, 21, 149, 79)  # 40 wide, a fifth more on each side, and one pixel
    assert around(np.roll(TRUTH, -100, axis=1)) == (0, 21, 49, 79)
    assert around(np.zeros_like(TRUTH)) == (0, 0, 200, 100)


def test_a_tile_has_both_contours_and_a_caption():
    tile = draw_tile("truck 1\n0.500", IMAGE, TRUTH, np.roll(TRUTH, 5, axis=0))
    assert tile.size == (TILE_PX, TILE_PX + CAPTION_PX)
    assert count(tile, TRUTH_COLOUR) > count(tile, MASK_COLOUR) > TILE_PX
    assert (np.array(tile)[TILE_PX:] > 200).any()
    missed = draw_tile("truck 1", IMAGE, TRUTH, np.zeros_like(TRUTH))
    assert count(missed, TRUTH_COLOUR) > 0 == count(missed, MASK_COLOUR)


def test_only_the_best_and_the_worst_are_kept():
    extremes = Extremes()
    values = np.random.default_rng(0).permutation(50) / 50
    for value in values:
        grey = np.full((9, 9, 3), int(5 * 50 * value), np.uint8)
        extremes.add("", value, grey, np.zeros((9, 9), bool), np.zeros((9, 9), bool))
    expected = sorted(values)[:COLUMNS] + sorted(values)[-COLUMNS:]
    assert extremes.scores == expected
    greys = [int(np.array(tile)[0, 0, 0]) for tile in extremes.tiles]
    assert greys == [int(5 * 50 * value) for value in expected]
    grid = np.array(extremes.draw("test"))
    assert tuple(grid[CAPTION_PX + 5, 20]) == (greys[-1],) * 3  # the best is the first


def test_a_grid_without_objects_has_a_title():
    grid = np.array(Extremes().draw("nothing"))
    assert (grid[:CAPTION_PX] > 200).any()
    assert not (grid[CAPTION_PX:] > 200).any()
