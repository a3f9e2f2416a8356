"""Prompts for an object of a video, masks that points refine among them; numbers of any type; calls that do nothing."""

from fractions import Fraction

import numpy as np
import pytest
from video.test_tracking import BALL, CUP, HEIGHT, WIDTH, assert_same, logits_of, moving_square

from masklet.errors import PromptError, SessionError
from masklet.video import tracker


@pytest.fixture(scope="module")
def video():
    return moving_square(12)


@pytest.mark.parametrize(
    ("clicks", "is_tracked", "was_prompted"),
    [
        ({"points": [(50, 30, 0)]}, False, False),
        ({"points": [(22, 20), (50, 30, 0)]}, False, True),
        ({"points": [(50, 30, 0)]}, True, False),
        (BALL, True, True),
    ],
)
def test_points_that_come_with_a_mask_refine_it_as_those_that_come_later_do(
    sam, video, clicks, is_tracked, was_prompted
):
    """The logits of the mask are given to the network with the points, and nothing else that was in the frame."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[12:36, 20:60] = True
    together, later, alone = (sam.video(video) for _ in range(3))
    for session in (together, later, alone):
        session.prompt(0, "cup", **CUP)
        if is_tracked:
            list(session.track(end=6))
        if was_prompted:
            session.prompt(5, "cup", points=[(70, 40)])
    later.prompt(5, "cup", mask=mask)
    expected, found = later.prompt(5, "cup", **clicks), together.prompt(5, "cup", mask=mask, **clicks)
    np.testing.assert_array_equal(found.logits, expected.logits)
    assert not np.array_equal(found.logits, alone.prompt(5, "cup", mask=mask).logits)
    assert_same(logits_of(together.track(end=7)), logits_of(later.track(end=7)))
    # Later points add to those that came with the mask; and all of it can be undone.
    more = {"points": [(40, 20)]}
    np.testing.assert_array_equal(together.prompt(5, "cup", **more).logits, later.prompt(5, "cup", **more).logits)
    for session in (together, alone):
        session.remove("cup", frame=5)
    if not is_tracked:
        assert_same(logits_of(together.track(end=7)), logits_of(alone.track(end=7)))


def test_points_with_a_mask_are_decoded_with_its_logits(sam, video, monkeypatch):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[12:36, 20:60] = True
    decoded, original = [], tracker.decode_prompt
    monkeypatch.setattr(tracker, "decode_prompt", lambda *a: decoded.append(a[2:]) or original(*a))
    sam.video(video).prompt(0, "cup", mask=mask, points=[(30, 20)])
    ((prompt, conditioned, previous),) = decoded
    assert prompt.labels.tolist() == [1]
    assert conditioned is None
    assert previous.min() == -10
    assert previous.max() == 10
    assert (previous > 0).float().mean().item() == pytest.approx(mask.mean(), abs=0.01)


def test_a_stream_takes_points_with_a_mask(sam, video):
    prompt = {"mask": video[0][..., 0] > 200, "points": [(50, 30, 0)]}
    together, one_by_one, session = sam.stream(), sam.stream(), sam.video(video[:1])
    for live in (together, one_by_one):
        pushed = live.push(video[0], {"cup": prompt})
        live.push(video[1])
    np.testing.assert_array_equal(pushed["cup"].logits, session.prompt(0, "cup", **prompt).logits)
    mask, points = {"mask": video[1][..., 0] > 200}, {"points": [(60, 20, 0)]}
    corrected = together.correct("cup", **mask, **points)
    one_by_one.correct("cup", **mask)
    np.testing.assert_array_equal(corrected["cup"].logits, one_by_one.correct("cup", **points)["cup"].logits)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_a_soft_mask_is_cut_at_one_half(sam, video, dtype):
    soft = np.tile(np.linspace(0, 1, WIDTH), (HEIGHT, 1))
    expected = sam.video(video).prompt(0, mask=soft >= 0.5).logits
    given = (soft * 255).round().astype(dtype) if dtype == "uint8" else soft.astype(dtype)
    np.testing.assert_array_equal(sam.video(video).prompt(0, mask=given).logits, expected)
    np.testing.assert_array_equal(sam.video(video).prompt(0, mask=given[None]).logits, expected)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int64", "float32", "bool"])
def test_a_binary_mask_of_any_type_is_the_same_mask(sam, video, kind):
    mask = video[0][..., 0] > 200
    expected = sam.video(video).prompt(0, mask=mask).logits
    for value in (1, 255):
        given = mask.astype(kind) if kind == "bool" else mask.astype(kind) * np.array(value, kind)
        np.testing.assert_array_equal(sam.video(video).prompt(0, mask=given).logits, expected)


NUMBERS = np.arange(WIDTH) * 4 // WIDTH * np.ones((HEIGHT, 1), int)


@pytest.mark.parametrize(
    "mask",
    [NUMBERS.astype("uint8"), NUMBERS, NUMBERS.astype("uint16"), NUMBERS.astype(float), NUMBERS + 1.0, NUMBERS - 1],
    ids=["uint8", "int64", "uint16", "float64", "no background", "negative"],
)
def test_a_mask_that_numbers_several_objects_is_refused(sam, video, mask):
    session, live = sam.video(video), sam.stream()
    message = rf"mask holds values from {mask.min():g} to {mask.max():g}: expected .*, select one: mask == 1$"
    for prompt in (
        lambda: session.prompt(0, mask=mask),
        lambda: session.prompt(0, mask=mask[None], points=[(22, 20)]),
        lambda: live.push(video[0], {"cup": {"mask": mask}}),
    ):
        with pytest.raises(PromptError, match=message):
            prompt()
    assert not session.object_ids
    assert session.prompt(0, mask=mask == 1).masks.any()


@pytest.mark.parametrize("logits", [4 * NUMBERS - 6.5, 4 * NUMBERS - 6.0, NUMBERS + 0.5])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_logits_are_cut_at_0(sam, video, logits, dtype):
    expected = sam.video(video).prompt(0, mask=logits > 0).logits
    np.testing.assert_array_equal(sam.video(video).prompt(0, mask=logits.astype(dtype)).logits, expected)


def test_frame_numbers_come_in_many_types(sam, video):
    """A table holds them as floats if one is missing."""
    expected = logits_of(prompted_and_tracked(sam, video, int))
    for kind in (float, np.int16, np.float32, np.array):
        results = prompted_and_tracked(sam, video, kind)
        assert {type(result.index) for result in results} == {int}
        assert_same(logits_of(results), expected)


def prompted_and_tracked(sam, video, number):
    session = sam.video(video, max_objects=number(4), max_prompted=number(2))
    session.prompt(number(2), "cup", **CUP)
    session.prompt(number(4), "cup", **CUP)
    session.remove("cup", number(4))
    return list(session.track(number(2), number(6), every=number(2)))


@pytest.mark.parametrize("every", [12, 2**31, 2**62])
def test_a_step_beyond_the_end_tracks_one_frame_in_little_memory(sam, video, every):
    session = sam.video(video)
    session.prompt(3, "cup", **CUP)
    assert len(session._tracks.policy.keeps(3, session._tracks.objects["cup"].bank, step=every)) < 30_000
    assert [result.index for result in session.track(every=every)] == [3]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"start": 8, "end": 6}, "end=6 is before the first frame to track, 8, and direction is forward"),
        ({"end": 4}, "end=4 is before the first frame to track, 5, .* the smallest prompted frame is the default"),
        ({"start": 8, "end": 6, "direction": "both"}, "end=6 is before the first frame to track, 8"),
        ({"start": 6, "end": 8, "direction": "backward"}, "end=8 is after the first frame to track, 6"),
        ({"end": 8, "direction": "backward"}, "end=8 is after the first frame to track, 7, .* the largest prompted"),
    ],
)
def test_tracking_that_reaches_no_frame_says_so_at_the_call(sam, video, where, message):
    session = sam.video(video)
    for frame in (5, 7):
        session.prompt(frame, "cup", **CUP)
    with pytest.raises(PromptError, match=f"nothing to track: {message}"):
        session.track(**where)


@pytest.mark.parametrize("direction", ["sideways", None, np.zeros(2)])
def test_directions_that_are_none_are_refused(sam, video, direction):
    session = sam.video(video)
    session.prompt(0, "cup", **CUP)
    with pytest.raises(PromptError, match="direction is .*: expected forward, backward or both"):
        session.track(direction=direction)


def test_continuing_what_never_began_says_so_at_the_call(sam, video):
    session = sam.video(video)
    session.prompt(0, "cup", **CUP)
    with pytest.raises(SessionError, match=r"nothing to continue: no frame was tracked .* Call track\(\)"):
        session.resume_tracking()
    list(session.track(end=2))
    assert list(session.resume_tracking()) == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([("cup", CUP)], r"prompts are \[.*: expected a dict of prompts by object, as in"),
        ({"cup": [(20, 20)]}, r"the prompt for object 'cup' is \[\(20, 20\)\]: expected points, labels, box or mask"),
        ({"cup": {"point": (20, 20)}}, "the prompt for object 'cup' is .*: expected points, labels, box or mask"),
        ({"cup": {}}, "nothing to segment"),
        ({float("nan"): CUP}, "object is nan: expected an id"),
    ],
)
def test_prompts_of_a_stream_that_make_no_sense_are_refused(sam, video, prompts, message):
    live = sam.stream()
    with pytest.raises(PromptError, match=message):
        live.push(video[0], prompts)
    assert live.count == 0


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1e-320, 10**400, "30", None])
def test_frame_rates_that_would_give_no_times_are_refused(sam, fps):
    with pytest.raises(PromptError, match="fps is .*: expected a number, 1e-06 to"):
        sam.stream(fps=fps)
    assert sam.stream(fps=Fraction(30000, 1001)).fps == pytest.approx(29.97, abs=0.001)


def test_a_stream_that_would_keep_all_prompted_frames_is_refused(sam):
    with pytest.raises(PromptError, match="max_prompted is None: a stream has no end"):
        sam.stream(max_prompted=None)
