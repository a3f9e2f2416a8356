"""Memory policies: which frames are read, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from video.test_tracking import BALL, CUP, logits_of, moving_square

from masklet.errors import ConfigError, PromptError
from masklet.video.memory import ObjectMemory
from masklet.video.policy import PaperPolicy


def made_up(prompted, tracked=()):
    """A history of frames without records."""
    history = ObjectMemory()
    history.prompted = set(prompted)
    history._results = dict.fromkeys([*prompted, *tracked])
    return history


class PromptedFramesOnly:
    """Reads the prompted frames and no other."""

    hypotheses, choose = 1, None

    def select(self, frame, history, *, step):
        return PaperPolicy().select(frame, made_up(history.prompted), step=step)

    def keeps(self, frame, history, *, step):
        return history.prompted


class Selecting:
    """Changes the selection of the paper's policy."""

    def __init__(self, **changes):
        self.changes = changes

    hypotheses, choose = 1, None

    def select(self, frame, history, *, step):
        return replace(PaperPolicy().select(frame, history, step=step), **self.changes)

    def keeps(self, frame, history, *, step):
        return history.prompted


@pytest.fixture(scope="module")
def video():
    return moving_square(20)


def test_the_policy_of_the_paper_has_a_name(sam, video):
    session = sam.video(video, policy="paper", max_prompted=3)
    assert session._tracks.policy == PaperPolicy(7, max_prompted=3, length=20)
    assert sam.stream(policy="paper").policy == PaperPolicy(7, max_prompted=8)


def test_a_policy_object_chooses_what_is_read(sam, video):
    session = sam.video(video, policy=PromptedFramesOnly())
    session.prompt(0, "cup", **CUP)
    results = list(session.track())
    assert set(session._tracks.objects["cup"].bank.maps) == {0}
    live = sam.stream(policy=PromptedFramesOnly())
    pushed = [live.push(frame, {"cup": CUP} if index == 0 else None) for index, frame in enumerate(video)]
    for key, logits in logits_of(pushed).items():
        np.testing.assert_array_equal(logits, logits_of(results)[key])


@pytest.mark.parametrize(
    "open_it", [lambda sam, **k: sam.video(moving_square(2), **k), lambda sam, **k: sam.stream(**k)]
)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"policy": "salsa"},
            "policy is 'salsa': expected 'paper', 'sam3', 'samurai', 'dam4sam', 'sam2long', or a memory policy",
        ),
        ({"policy": None}, "policy is None: expected 'paper', .*, or a memory policy"),
        ({"policy": len}, "or a memory policy"),
        ({"policy": "samurai", "max_prompted": None}, "only 'paper' reads all prompted frames"),
        (
            {"policy": PaperPolicy(), "max_prompted": 3},
            "max_prompted is 3, but policy is an object: expected the name of a policy, or the limit in the object",
        ),
    ],
)
def test_other_policies_are_refused(sam, open_it, arguments, message):
    with pytest.raises(ConfigError, match=message):
        open_it(sam, **arguments)


@pytest.mark.parametrize("max_objects", [1, 16])
@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_a_policy_that_selects_no_frame_is_refused(sam, video, fixed_shapes, max_objects):
    session = sam.video(video, policy=Selecting(maps=(), pointers=()), max_objects=max_objects)
    session._tracks.fixed_shapes = fixed_shapes
    session.prompt(0, "cup", **CUP)
    session.prompt(0, "ball", **BALL)
    with pytest.raises(
        ConfigError, match="the memory policy Selecting selects no frame for frame 1: expected at least"
    ):
        list(session.track())


def test_a_policy_that_selects_no_frame_is_refused_in_corrections_and_streams(sam, video):
    session, live = sam.video(video), sam.stream(policy=Selecting(maps=(), pointers=()))
    session.prompt(0, "cup", **CUP)
    list(session.track(end=3))
    session._tracks.policy = Selecting(maps=())
    with pytest.raises(ConfigError, match="selects no frame for frame 2"):
        session.prompt(2, "cup", points=[(40, 30, 0)])
    live.push(video[0], {"cup": CUP})
    with pytest.raises(ConfigError, match="selects no frame for frame 1"):
        live.push(video[1])
    assert live.count == 1


def test_a_policy_that_selects_frames_without_a_result_is_refused(sam, video):
    session = sam.video(video, policy=Selecting(pointers=((17, 3),)))
    session.prompt(0, "cup", **CUP)
    with pytest.raises(ConfigError, match="Selecting selects frame 17 for frame 1: expected frames with a result"):
        list(session.track())


def test_a_policy_that_reads_what_it_does_not_keep_is_refused_in_a_stream(sam, video):
    class Forgetful(PromptedFramesOnly):
        def keeps(self, frame, history, *, step):
            return set()

    live = sam.stream(policy=Forgetful())
    live.push(video[0], {"cup": CUP})
    with pytest.raises(ConfigError, match=r"reads frame 0 in frame 1 of a stream.* its keeps\(\) returned"):
        live.push(video[1])


def test_at_least_one_prompted_frame_is_read(sam, video):
    with pytest.raises(PromptError, match="max_prompted is 0: expected a whole number, 1 or more"):
        sam.video(video, max_prompted=0)


def test_the_nearest_prompted_frames_are_read():
    policy = PaperPolicy(num_maskmem=7, max_prompted=3)
    assert policy.nearest(10, {0, 4, 9, 12, 30}) == {9, 12, 4}
    assert policy.nearest(10, {0, 4}) == {0, 4}
    selection = policy.select(10, made_up({0, 4, 9, 12, 30}, range(10)), step=1)
    slots = dict(selection.maps)
    assert slots[9] == slots[12] == slots[4] == 6
    assert 0 not in slots
    assert slots[8] == 1
    assert min(f for f, _ in selection.maps) == 4


def test_a_frame_reads_the_last_six_maps_and_fifteen_pointers():
    selection = PaperPolicy().select(40, made_up({0}, range(1, 40)), step=1)
    assert dict(selection.maps) == {0: 6, 39: 0, 38: 1, 37: 2, 36: 3, 35: 4, 34: 5}
    assert dict(selection.pointers) == {0: 40} | {40 - back: back for back in range(1, 16)}


def test_tracking_backward_reads_the_frames_after():
    selection = PaperPolicy().select(10, made_up({20}, range(11, 20)), step=-1)
    assert dict(selection.maps) == {20: 6} | {10 + back: back - 1 for back in range(1, 7)}
    assert dict(selection.pointers)[20] == 10


@pytest.mark.parametrize("step", [1, -1, 3, -3])
def test_the_papers_policy_reads_the_last_frames_and_keeps_what_may_be_read_next(step):
    policy, frame = PaperPolicy(num_maskmem=4, length=8), 60
    history = made_up({0}, range(120))
    earlier = [frame - before * step for before in range(1, 8)]
    selection = policy.select(frame, history, step=step)
    assert selection.maps == ((0, 3), *((f, slot) for slot, f in enumerate(earlier[:3])))
    prompted = [(0, frame / step)] if step > 0 else []  # pointers of later frames are not read
    assert list(selection.pointers) == prompted + [(f, before) for before, f in enumerate(earlier, start=1)]
    near = set(range(frame - 4 * abs(step), frame + 4 * abs(step) + 1))
    assert policy.keeps(frame, history, step=step) == {0} | near


def test_the_papers_policy_reads_no_frame_between_steps():
    history = made_up({0}, [0, 3, 4, 6])
    assert [f for f, _ in PaperPolicy().select(9, history, step=3).maps] == [0, 6, 3]


def test_pointers_reach_as_far_as_a_short_video_is_long():
    selection = PaperPolicy(num_maskmem=7, length=4).select(20, made_up({0}, range(30)), step=1)
    assert [f for f, _ in selection.pointers] == [0, 19, 18, 17]
    assert len(selection.maps) == 7
