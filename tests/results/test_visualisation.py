import io
import re
from base64 import b64encode

import numpy as np
import pytest
from mask_results import rectangles
from PIL import Image

from masklet.results.visualisation import PALETTE, colour_of, grow


def test_an_overlay_fills_masks_and_draws_a_light_and_a_dark_contour(square):
    image = np.array(square.overlay(alpha=0.5))
    colour = PALETTE[3].astype(int)
    np.testing.assert_allclose(image[40, 40], (200 + colour) / 2, atol=1)
    assert image[20, 40].min() >= 191
    np.testing.assert_array_equal(image[19, 40], [66, 66, 66])
    np.testing.assert_array_equal(image[18, 40], [200, 200, 200])
    assert np.array_equal(square.image, np.full((80, 100, 3), 200))


def test_at_alpha_0_an_overlay_has_contours_only(square):
    image = np.array(square.overlay(alpha=0))
    np.testing.assert_array_equal(image[22:58, 22:58], square.image[22:58, 22:58])
    assert (image[20, 40] != 200).any()


def test_contours_are_thicker_on_larger_images():
    image = np.full((100, 1800, 3), 200, np.uint8)
    painted = np.array(rectangles((50, 20, 90, 80), size_hw=(100, 1800)).overlay(image, alpha=0))
    assert [bool((painted[50, x] != 200).any()) for x in range(45, 55)] == [False] * 2 + [True] * 6 + [False] * 2


def test_the_smallest_mask_is_on_top_and_colours_do_not_mix():
    image = np.zeros((40, 40, 3), np.uint8)
    small, large = (15, 15, 25, 25), (0, 0, 40, 40)
    for pieces, objects in [((small, large), [0, 1]), ((large, small), [1, 0])]:
        painted = rectangles(*pieces, size_hw=(40, 40), object_ids=objects).overlay(image, alpha=1)
        assert painted.getpixel((20, 20)) == tuple(PALETTE[0])
        assert painted.getpixel((5, 5)) == tuple(PALETTE[1])


def test_an_overlay_can_be_painted_on_another_image(square):
    black = Image.new("L", (100, 80))
    assert square.overlay(black, alpha=0.5).getpixel((90, 5)) == (0, 0, 0)


def test_objects_keep_their_colours_and_neighbours_differ():
    assert len(np.unique(PALETTE, axis=0)) == len(PALETTE)
    np.testing.assert_array_equal(colour_of(np.array([0, 5, 12, 300, -1])), PALETTE[[0, 5, 0, 0, 11]])


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_an_alpha_out_of_range_is_refused(square, alpha):
    with pytest.raises(ValueError, match="alpha is .*: expected a number, 0 to 1"):
        square.overlay(alpha=alpha)


def test_an_overlay_without_an_image_asks_for_one(three):
    with pytest.raises(ValueError, match=re.escape("these masks have no image: pass it, overlay('truck.jpg')")):
        three.overlay()


def test_an_overlay_on_an_image_of_another_size_is_refused(three):
    with pytest.raises(ValueError, match=re.escape("shape (8, 6, 3) does not fit masks of 8×6 pixels")):
        three.overlay(np.zeros((8, 6, 3), np.uint8))


def test_grow_is_an_octagon():
    dot = np.zeros((15, 15), bool)
    dot[7, 7] = True
    for by_px in range(6):
        grown = grow(dot, by_px)
        reach = [np.flatnonzero(line).tolist() for line in (grown[7], grown[:, 7])]
        assert reach == [list(range(7 - by_px, 8 + by_px))] * 2
        assert grown[7 + by_px, 7 + by_px] == (by_px == 0)
    assert grow(dot, 5).sum() < 11 * 11


def test_an_overlay_can_be_saved_in_any_format(square):
    file = io.BytesIO()
    square.overlay().save(file, "JPEG")
    assert file.tell()


def test_ids_are_written_on_the_visible_part_of_each_mask():
    large, small = (0, 0, 300, 60), (100, 0, 300, 60)
    masks = rectangles(large, small, size_hw=(60, 300), image=np.full((60, 300, 3), 240, np.uint8))
    changed = (np.array(masks.overlay(ids=True)) != np.array(masks.overlay())).any(2)
    pieces = np.flatnonzero(np.diff(np.pad(changed.any(0), 1).astype(int)))
    assert len(pieces) == 4, "two labels"
    assert pieces[1] < 100 < pieces[2], "one on each"
    assert abs(pieces[:2].mean() - 50) <= 1
    assert abs(pieces[2:].mean() - 200) <= 1


def test_ids_stay_within_small_images():
    corner = rectangles((0, 0, 1, 1), size_hw=(40, 60), object_ids=[70000], image=np.zeros((40, 60, 3), np.uint8))
    label = np.array(corner.overlay(ids=True)).any(2)
    assert label[:, -5:].sum() == 0
    assert label[0].any()
    dot = rectangles((0, 0, 1, 1), size_hw=(1, 1), image=np.zeros((1, 1, 3), np.uint8))
    assert dot.overlay(ids=True).size == (1, 1)


def test_a_cutout_is_the_image_inside_all_masks_cropped_to_their_box(image):
    masks = rectangles((10, 5, 20, 15), (30, 8, 32, 40), size_hw=(48, 80), image=image)
    cutout = np.array(masks.cutout())
    together = masks.masks.any(0)[5:40, 10:32]
    assert cutout.shape == (35, 22, 4)
    np.testing.assert_array_equal(cutout[..., 3], together * 255)
    np.testing.assert_array_equal(cutout[together][:, :3], image[5:40, 10:32][together])
    assert not cutout[~together].any()
    np.testing.assert_array_equal(rectangles((10, 5, 20, 15), size_hw=(48, 80)).cutout(image), masks[0].cutout())


def test_a_cutout_needs_an_image_and_a_mask_that_is_not_empty(three, nothing):
    with pytest.raises(ValueError, match=re.escape("these masks have no image: pass it, cutout('truck.jpg')")):
        three.cutout()
    with pytest.raises(ValueError, match="nothing to cut out: all masks are empty"):
        nothing.cutout()


def test_a_notebook_displays_the_overlay_or_masks_on_black(square, three):
    shown = Image.open(io.BytesIO(square._repr_png_()))
    np.testing.assert_array_equal(shown, square.overlay())
    np.testing.assert_array_equal(
        Image.open(io.BytesIO(three._repr_png_())), three.overlay(np.zeros((6, 8, 3), np.uint8))
    )


def test_a_notebook_displays_a_table_of_the_first_masks(square, three, nothing):
    page = three._repr_html_()
    assert b64encode(three._repr_png_()).decode() in page
    assert page.count("<tr>") == 1 + len(three)
    x0, y0, x1, y1 = three.boxes[0]
    cells = (three.object_ids[0], f"{three.iou_scores[0]:.2f}", three.areas[0], f"{x0:g}, {y0:g}, {x1:g}, {y1:g}")
    assert "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" in page
    assert repr(three) in page
    assert "<table>" not in nothing._repr_html_()
    many = square[[0] * 30]._repr_html_()
    assert many.count("<tr>") == 21
    assert "the first 20" in many


def test_a_notebook_gets_a_reduced_image():
    wide = rectangles((0, 0, 9, 9), size_hw=(20, 3000))
    assert Image.open(io.BytesIO(wide._repr_png_())).size == (1024, 7)
