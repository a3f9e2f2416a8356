"""J and F against formulas of another make, and a folder of films from reader to summary."""

import itertools
import json
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import integers
from PIL import Image

from masklet.errors import FilmError
from masklet.evaluation import __main__ as command
from masklet.evaluation.video import (
    FilmScore,
    boundary,
    boundary_f,
    evaluate_film,
    evaluate_films,
    label_map,
    read_films,
    region_j,
    summarise_films,
    within,
)

NOTHING = np.zeros((8, 8), bool)
EVERYTHING = ~NOTHING


def square(y0, y1, x0, x1, size_hw=(8, 8)):
    mask = np.zeros(size_hw, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_j_by_hand():
    left, right = square(0, 2, 0, 4), square(0, 2, 2, 6)
    assert region_j(left, right) == pytest.approx(4 / 12)
    assert region_j(left, left) == region_j(NOTHING, NOTHING) == 1
    assert region_j(left, NOTHING) == region_j(NOTHING, left) == 0


def test_a_boundary_lies_above_and_left_of_an_edge():
    """A 2×2 square differs from the row above it and the column to its left, not from those behind it."""
    expected = np.zeros((8, 8), bool)
    for y, x in [(1, 1), (1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2), (3, 3)]:
        expected[y, x] = True
    np.testing.assert_array_equal(boundary(square(2, 4, 2, 4)), expected)


def test_the_picture_is_no_edge():
    assert not boundary(EVERYTHING).any()
    assert not boundary(NOTHING).any()
    np.testing.assert_array_equal(np.argwhere(boundary(square(0, 8, 3, 8))), [(y, 2) for y in range(8)])
    assert np.argwhere(boundary(square(7, 8, 7, 8))).tolist() == [[6, 6], [6, 7], [7, 6]]


def boundary_pixel_by_pixel(mask):
    """Each pixel asked in turn, in plain Python."""
    height, width = mask.shape
    found = np.zeros_like(mask)
    for y, x in itertools.product(range(height), range(width)):
        others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
        found[y, x] = any(mask[y, x] != mask[v, u] for v, u in others if v < height and u < width)
    return found


def f_by_distances(mask, truth, tolerance_px):
    """From all distances between the two boundaries, instead of dilated masks."""
    drawn, real = (np.argwhere(boundary_pixel_by_pixel(m)) for m in (mask, truth))
    if not len(drawn) or not len(real):
        return float(len(drawn) == len(real))
    near = ((drawn[:, None] - real) ** 2).sum(-1) <= tolerance_px**2
    precision, recall = near.any(1).mean(), near.any(0).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@given(arrays(bool, (9, 12)))
def test_boundaries_agree_with_a_search_pixel_by_pixel(mask):
    np.testing.assert_array_equal(boundary(mask), boundary_pixel_by_pixel(mask))


@given(arrays(bool, (7, 11)), integers(0, 14))
def test_dilation_agrees_with_a_search_of_all_distances(mask, radius):
    places = np.argwhere(np.ones_like(mask))
    squared = ((places[:, None] - np.argwhere(mask)) ** 2).sum(-1)
    np.testing.assert_array_equal(within(mask, radius), (squared <= radius**2).any(1).reshape(mask.shape))


def blobs(seed, height, width):
    """Two smooth shapes of which one has moved."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    ripple = rng.uniform(0, 6)
    centre_y, centre_x = rng.uniform(0.3, 0.7, 2) * (height, width)
    moved_y, moved_x = rng.normal(0, 4, 2)

    def shape(cy, cx, size):
        angle = np.arctan2(y - cy, x - cx)
        return np.hypot(y - cy, x - cx) < size * (1 + 0.2 * np.sin(5 * angle + ripple))

    return shape(centre_y, centre_x, height / 4), shape(centre_y + moved_y, centre_x + moved_x, height / 4.4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("size_hw", "tolerance_px"), [((120, 160), 2), ((90, 400), 4), ((100, 75), 1)])
def test_f_agrees_with_all_distances_between_boundaries(seed, size_hw, tolerance_px):
    mask, truth = blobs(seed, *size_hw)
    expected = f_by_distances(mask, truth, tolerance_px)
    assert 0 < expected < 1
    assert boundary_f(mask, truth) == pytest.approx(expected)
    assert boundary_f(mask, truth) == pytest.approx(boundary_f(truth, mask))


def test_f_by_hand():
    """In 60×80 (diagonal 100) the tolerance is one pixel: an upright edge may be one column off, not two."""
    half = [square(0, 60, 0, x, (60, 80)) for x in (40, 41, 42)]
    assert boundary_f(half[0], half[1]) == 1
    assert boundary_f(half[0], half[2]) == 0
    bent = half[0].copy()
    bent[:30, 40:50] = True  # 30 rows of its boundary are away, and 10 pixels lie between
    drawn = [(y, 49) for y in range(29)] + [(29, x) for x in range(39, 50)] + [(y, 39) for y in range(30, 60)]
    assert np.argwhere(boundary(bent)).tolist() == [list(place) for place in sorted(drawn)]
    # Near column 39: its own 30 pixels, those of row 29 in columns 39 and 40. Met of column 39: rows 28 to 59.
    precision, recall = 32 / 70, 32 / 60
    assert boundary_f(bent, half[0]) == pytest.approx(2 * precision * recall / (precision + recall))


def test_f_where_a_boundary_is_missing():
    some = square(2, 5, 2, 5)
    assert boundary_f(NOTHING, NOTHING) == boundary_f(EVERYTHING, NOTHING) == 1  # as DAVIS has it
    assert boundary_f(some, NOTHING) == boundary_f(NOTHING, some) == 0


def test_the_tolerance_at_480p_is_eight_pixels():
    edge = square(0, 480, 0, 400, (480, 854))
    assert boundary_f(edge, square(0, 480, 0, 408, (480, 854))) == 1
    assert boundary_f(edge, square(0, 480, 0, 409, (480, 854))) == 0


def test_where_masks_overlap_the_highest_logit_has_the_pixel():
    logits = np.float32([[[3, 1], [-1, -1]], [[2, 2], [-2, 5]]])
    assert label_map(logits, (2, 2)).tolist() == [[1, 2], [0, 2]]
    assert label_map(np.zeros((1, 2, 2), np.float32), (4, 4)).max() == 0  # above 0, not at it


SIZE_HW = (48, 64)


def write_film(folder, name, labels):
    (folder / "JPEGImages" / name).mkdir(parents=True)
    (folder / "Annotations" / name).mkdir(parents=True)
    for index, values in enumerate(labels):
        pixels = np.repeat(40 + 80 * (values[..., None] % 255), 3, -1).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / name / f"{index:05}.jpg")
        picture = Image.fromarray(values)
        picture.putpalette(bytes(range(256)) * 3)  # a shorter one would cut the numbers short
        picture.save(folder / "Annotations" / name / f"{index:05}.png")


def moving(frames):
    """Object 2 stands still but is gone from frame 2 on, object 5 moves 8 pixels a frame; the corner is void."""
    film = []
    for index in range(frames):
        values = np.zeros(SIZE_HW, np.uint8)
        values[4:12, 4:12] = 2 * (index < 2)
        values[20:36, 8 + 8 * index : 24 + 8 * index] = 5
        values[-4:, -4:] = 255
        film.append(values)
    return film


@pytest.fixture
def folder(tmp_path):
    write_film(tmp_path, "square", moving(5))
    return tmp_path


def test_a_folder_is_read_in_davis_layout(folder):
    (film,) = read_films(folder)
    assert film.name == "square"
    assert [path.name for path in film.pictures] == [f"{index:05}.jpg" for index in range(5)]
    assert np.unique(film.labels(0)).tolist() == [0, 2, 5]
    assert np.unique(film.labels(3)).tolist() == [0, 5]


def test_films_may_lie_in_a_480p_as_davis_has_them(folder):
    for kind in ("JPEGImages", "Annotations"):
        (folder / kind / "480p").mkdir()
        (folder / kind / "square").rename(folder / kind / "480p" / "square")
    (film,) = read_films(folder)
    assert (film.name, len(film.pictures), len(film.annotations)) == ("square", 5, 5)


@dataclass
class Scripted:
    """A segmenter and its session in one: whatever it was shown, it answers with the masks of a script."""

    masks: list  # of each frame, {object: (height, width) bool}
    shown: dict

    def video(self, pictures):
        self.count = len(pictures)
        return self

    def prompt(self, frame, number, mask):
        self.shown[frame, number] = mask

    def track(self, end):
        for index in range(end + 1):
            logits = np.stack([np.where(mask, np.float32(1), -1) for mask in self.masks[index].values()])
            yield ScriptedFrame(index, tuple(self.masks[index]), ScriptedMasks(logits))


@dataclass
class ScriptedFrame:
    index: int
    objects: tuple
    masks: object


@dataclass
class ScriptedMasks:
    logits: np.ndarray


def test_a_perfect_tracker_scores_one_and_masks_kept_still_score_what_they_must(folder):
    (film,) = read_films(folder)
    sam = Scripted([{2: film.labels(i) == 2, 5: film.labels(i) == 5} for i in range(5)], {})
    score = evaluate_film(sam, film)
    assert sam.shown.keys() == {(0, 2), (0, 5)}
    np.testing.assert_array_equal(sam.shown[0, 5], film.labels(0) == 5)
    assert (score.j, score.f, score.j_and_f) == (1, 1, 1)
    assert (score.film, score.objects, score.frames) == ("square", 2, 3)
    # Frames 1, 2, 3. Object 2: 1, then what is kept of it is wrong. Object 5 overlaps by half, then no more.
    assert score.still_j == pytest.approx((1 + 0 + 0 + 1 / 3 + 0 + 0) / 6)


def test_the_first_and_the_last_frame_are_not_scored(folder):
    (film,) = read_films(folder)
    truth = [{2: film.labels(i) == 2, 5: film.labels(i) == 5} for i in range(5)]
    wrong = {2: ~truth[0][2], 5: ~truth[0][5]}
    assert evaluate_film(Scripted([wrong, *truth[1:4], wrong], {}), film).j == 1
    assert evaluate_film(Scripted([truth[0], wrong, *truth[2:]], {}), film).j < 1


def test_a_network_follows_a_folder_of_films(sam, folder, capsys, monkeypatch):
    write_film(folder, "single", [np.where(values == 5, 1, 0).astype(np.uint8) for values in moving(4)])
    scores = list(evaluate_films(sam, folder))
    assert [(score.film, score.objects, score.frames) for score in scores] == [("single", 1, 2), ("square", 2, 3)]
    assert all(0 <= value <= 1 for score in scores for value in (score.j, score.f, score.still_j, score.still_f))
    monkeypatch.setattr(command, "load", lambda name: sam)
    monkeypatch.setattr(sys, "argv", ["evaluation", "--films", str(folder)])
    command.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["film"] for line in lines[:2]] == ["single", "square"]
    assert lines[0]["j_and_f"] == pytest.approx((lines[0]["j"] + lines[0]["f"]) / 2)
    assert lines[2] == pytest.approx(summarise_films(scores))


def test_means_are_over_objects_not_films():
    one, three = FilmScore("a", 1, 9, 0.0, 0.4, 0.0, 0.0), FilmScore("b", 3, 9, 1.0, 0.8, 0.0, 0.4)
    means = summarise_films([one, three])
    assert (means["j"], means["f"], means["j_and_f"]) == pytest.approx((0.75, 0.7, 0.725))
    assert (means["still_f"], means["still_j_and_f"], means["films"], means["objects"]) == pytest.approx(
        (0.3, 0.15, 2, 4)
    )
    with pytest.raises(ValueError, match="no film"):
        summarise_films([])


def test_what_is_wrong_with_a_folder_of_films_is_said(sam, folder, tmp_path_factory):
    with pytest.raises(FilmError, match="no films in"):
        list(read_films(tmp_path_factory.mktemp("empty")))
    (folder / "Annotations/square/00003.png").unlink()
    with pytest.raises(FilmError, match=r"1 of 5 pictures have no annotation: expected .*00003\.png"):
        list(read_films(folder))
    write_film(folder, "a-short-one", moving(2))
    with pytest.raises(FilmError, match="has 2 pictures: expected 3"):
        list(read_films(folder))
    blank = tmp_path_factory.mktemp("blank")
    write_film(blank, "blank", [np.full(SIZE_HW, 255, np.uint8)] * 3)
    with pytest.raises(FilmError, match="shows no object"):
        list(evaluate_films(sam, blank))
