"""Each memory policy against a plain computation on made-up histories, and what must hold for all of them."""

import copy
import math
from dataclasses import asdict, replace
from itertools import product

import numpy as np
import pytest
import torch
from video.test_tracking import BALL, CUP, assert_same, logits_of, moving_square

from examples.samite_policy import SamitePolicy
from masklet.engine import make_engine
from masklet.errors import ConfigError, SessionError
from masklet.masks import encode_rle
from masklet.results import Masks
from masklet.segmenter import Segmenter
from masklet.video.memory import ObjectMemory
from masklet.video.object_frame import ObjectFrame
from masklet.video.pathways import Pathway
from masklet.video.policies import POLICIES, Dam4SamPolicy, Sam2LongPolicy, Sam3Policy, SamuraiPolicy
from masklet.video.policies.kalman import BoxFilter, box_iou
from masklet.video.policy import HISTORY_STEPS, Candidates, Choice, FrameRecord, PaperPolicy
from masklet.video.track import Track

NEW = ("sam3", "samurai", "dam4sam", "sam2long")
ALL = {**{name: name for name in POLICIES}, "samite": SamitePolicy(memory=PaperPolicy(max_prompted=8))}
BOX = (10.0, 20.0, 30.0, 60.0)
FRAMES = 14


@pytest.fixture(scope="module")
def video():
    return moving_square(FRAMES)


def history_of(records, prompted=(0,)):
    """A history in which the frames of ``prompted`` were prompted."""
    history = ObjectMemory()
    history.prompted = set(prompted)
    history.records = {frame: replace(record, is_prompted=frame in prompted) for frame, record in records.items()}
    history._results = dict.fromkeys(records)
    return history


def record(iou_score=0.9, object_score=5.0, box=BOX, area=800, step=1, **notes):
    return FrameRecord(iou_score, object_score, box, area, step=step, notes=notes)


def random_records(seed, count=60):
    rng = np.random.default_rng(seed)
    records = {}
    for frame in range(count):
        is_seen = rng.random() < 0.7
        records[frame] = record(
            float(rng.choice([0.05, 0.2, 0.4, 0.6, 0.85, 0.95])),
            float(rng.choice([0.01, 1.0, 6.0])) if is_seen else -3.0,
            area=int(rng.integers(500, 1100)),
            motion=[None, 0.0, 0.7][rng.integers(3)],
            distractor=bool(is_seen and rng.random() < 0.2),
        )
    return records


def candidates(history, iou_scores, object_score=5.0, boxes=None, areas=None, is_prompted=False):
    boxes = (BOX,) * len(iou_scores) if boxes is None else boxes
    areas = (800,) * len(iou_scores) if areas is None else areas
    return Candidates(history, tuple(iou_scores), object_score, boxes, areas, torch.zeros(0), None, is_prompted)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# Each policy on made-up histories


@pytest.mark.parametrize("seed", range(8))
def test_sam3_reads_the_last_frames_with_a_clear_object(seed):
    records = random_records(seed)
    clear = [
        frame
        for frame in range(59, 0, -1)
        if max(0, 2 * sigmoid(records[frame].object_score) - 1) * records[frame].iou_score > 0.01
    ][:15]
    listed = clear if 59 in clear else [59, *clear][:15]
    selection = Sam3Policy().select(60, history_of(records), step=1)
    assert dict(selection.maps) == {0: 6} | {frame: rank for rank, frame in enumerate(listed[:6])}
    assert dict(selection.pointers) == {0: 60} | {frame: rank for rank, frame in enumerate(listed, start=1)}


def test_sam3_reads_the_first_and_the_nearest_of_many_prompted_frames():
    records = random_records(0)
    selection = Sam3Policy().select(40, history_of(records, prompted=(0, 5, 10, 33, 39, 55)), step=1)
    assert {frame for frame, slot in selection.maps if slot == 6} == {0, 33, 39, 55}


@pytest.mark.parametrize("seed", range(8))
def test_samurai_reads_the_last_good_frames(seed):
    records = random_records(seed)
    good = [
        frame
        for frame in range(59, 0, -1)
        if records[frame].iou_score > 0.5
        and records[frame].object_score > 0
        and (records[frame].notes["motion"] is None or records[frame].notes["motion"] > 0)
    ][:6]
    read = good if 59 in good else [59, *good][:6]
    selection = SamuraiPolicy().select(60, history_of(records), step=1)
    assert dict(selection.maps) == {0: 6} | {frame: rank for rank, frame in enumerate(read)}
    assert dict(selection.pointers) == {0: 60} | {60 - back: back for back in range(1, 16)}


def test_the_filter_of_boxes_is_a_kalman_filter():
    rng = np.random.default_rng(1)
    boxes = [(x, x / 2, x + 20 + rng.normal(), x / 2 + 40 + rng.normal()) for x in np.cumsum(rng.uniform(1, 4, 12))]

    def measured(box):
        x0, y0, x1, y1 = box
        return np.array([(x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / (y1 - y0), y1 - y0])

    height = measured(boxes[0])[3]
    mean = np.concatenate([measured(boxes[0]), np.zeros(4)])
    spread = [height / 10, height / 10, 1e-2, height / 10, height / 16, height / 16, 1e-5, height / 16]
    covariance = np.diag(np.square(spread))
    motion = np.eye(8) + np.eye(8, k=4)
    ours = BoxFilter.start(boxes[0])
    for box in boxes[1:]:
        h = mean[3]
        noise = np.diag(np.square([h / 20, h / 20, 1e-2, h / 20, h / 160, h / 160, 1e-5, h / 160]))
        mean, covariance = motion @ mean, motion @ covariance @ motion.T + noise
        ours = ours.predict()
        np.testing.assert_allclose(ours.means, mean, rtol=1e-9)
        h = mean[3]
        see = np.eye(4, 8)
        gain_of = see @ covariance @ see.T + np.diag(np.square([h / 20, h / 20, 1e-1, h / 20]))
        gain = covariance @ see.T @ np.linalg.inv(gain_of)
        mean = mean + gain @ (measured(box) - see @ mean)
        covariance = covariance - gain @ gain_of @ gain.T
        ours = ours.update(box)
        np.testing.assert_allclose(ours.means, mean, rtol=1e-9)
        np.testing.assert_allclose([pp for pp, _, _ in ours.covariances], np.diag(covariance)[:4], rtol=1e-7)
    assert BoxFilter.from_json(ours.to_json()) == ours
    np.testing.assert_allclose(ours.with_step(-2).means[4:], -2 * mean[4:])


def run_samurai(policy, frames, boxes_at, scores=(0.9, 0.85)):
    """The choices of a policy whose history is made of them."""
    records, chosen = {}, []
    for frame in range(frames):
        boxes = boxes_at(frame)
        is_prompted = frame == 0
        row = candidates(history_of(records), scores[: len(boxes)], boxes=boxes, is_prompted=is_prompted)
        (choice,) = policy.choose(frame, [row], step=1)
        records[frame] = record(scores[choice.candidate], box=boxes[choice.candidate], **choice.notes)
        chosen.append(choice.candidate)
    return chosen, records


def test_samurai_prefers_what_moves_as_the_object_did():
    def boxes_at(frame):
        own = (4.0 * frame, 10.0, 4.0 * frame + 20, 40.0)
        other = (200.0, 10.0, 220.0, 40.0)  # predicted to be the better mask from frame 20 on
        return (own,) if frame < 20 else (other, own)

    chosen, records = run_samurai(SamuraiPolicy(), 26, boxes_at)
    assert chosen[20:] == [1] * 6
    assert records[22].notes["motion"] > 0.7
    assert run_samurai(SamuraiPolicy(motion_weight=0.0), 21, boxes_at)[0][20] == 0
    assert run_samurai(SamuraiPolicy(stable_frames=25), 21, boxes_at)[0][20] == 0


def test_samurai_counts_stable_frames_anew_after_a_bad_one():
    scores = dict.fromkeys(range(10), 0.9) | {6: 0.2}
    records = {}
    for frame in range(10):
        row = candidates(history_of(records), (scores[frame],), is_prompted=frame == 0)
        (choice,) = SamuraiPolicy().choose(frame, [row], step=1)
        records[frame] = record(scores[frame], **choice.notes)
    assert [records[frame].notes["stable"] for frame in range(10)] == [1, 2, 3, 4, 5, 6, 0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(8))
def test_dam4sam_reads_recent_frames_and_those_with_distractors(seed):
    records = random_records(seed)
    distractors = [frame for frame in range(59, 0, -1) if records[frame].notes["distractor"]][:3]
    certain = {0, *distractors}
    recent = [
        frame
        for frame in range(59, -1, -1)
        if (frame == 59 or frame % 5 == 0) and records[frame].object_score > 0 and frame not in certain
    ][:3]
    selection = Dam4SamPolicy().select(60, history_of(records), step=1)
    assert dict(selection.maps) == dict.fromkeys(certain, 6) | {frame: rank for rank, frame in enumerate(recent)}
    seen = {60 - back: back for back in range(1, 16) if records[60 - back].object_score > 0}
    assert dict(selection.pointers) == {frame: 60 - frame for frame in certain} | seen


OWN, OTHER = (10.0, 10.0, 30.0, 30.0), (30.0, 10.0, 50.0, 30.0)


@pytest.mark.parametrize(
    ("iou", "area", "other", "object_score", "expected"),
    [
        (0.9, 800, OTHER, 5.0, True),  # the box of both is twice as large: IoU 0.5
        (0.9, 800, (10.0, 10.0, 30.0, 38.0), 5.0, False),  # IoU 20 / 28 = 0.71
        (0.9, 800, (10.0, 10.0, 30.0, 39.0), 5.0, True),  # 20 / 29 = 0.69
        (0.8, 800, OTHER, 5.0, False),
        (0.9, 961, OTHER, 5.0, False),  # more than 20 % above the median of 800
        (0.9, 640, OTHER, 5.0, True),
        (0.9, 639, OTHER, 5.0, False),
        (0.9, 800, OTHER, -1.0, False),
    ],
)
def test_dam4sam_notices_distractors_beside_a_reliable_mask(iou, area, other, object_score, expected):
    areas = [9000] * 5 + [800, 700, 900, 800, 800, 790, 810, 850, 750, 800]  # only the last ten count
    history = history_of({frame: record(area=area) for frame, area in enumerate(areas)})
    row = candidates(history, (iou, 0.3), object_score, (OWN, other), (area, 500))
    assert Dam4SamPolicy().choose(15, [row], step=1)[0].notes["distractor"] is expected


@pytest.mark.parametrize("seed", range(8))
def test_sam2long_reads_good_frames_with_weights_by_object_score(seed):
    records = random_records(seed)
    rng = np.random.default_rng(seed)
    records = {frame: replace(one, object_score=one.object_score + rng.random()) for frame, one in records.items()}
    read = [f for f in range(59, 0, -1) if records[f].iou_score > 0.3 and records[f].object_score > 0][:6]
    selection = Sam2LongPolicy().select(60, history_of(records), step=1)
    assert selection.maps == ((0, 6), *((frame, rank) for rank, frame in enumerate(read)))
    by_score = sorted(read, key=lambda frame: records[frame].object_score)
    weights = dict(zip(by_score, np.linspace(0.95, 1.05, len(read)), strict=True))
    np.testing.assert_allclose(selection.key_weights, [1.0] + [weights[frame] for frame in read])


def run_tree(policy, ious, object_score):
    """The choices of a policy on (frames, rows, candidates) made-up scores, and the track that they make."""
    track = Track(0, ObjectMemory(), {}, other_banks=[ObjectMemory(), ObjectMemory()])
    names = [[[("start",), 0.0]]]
    for frame in range(len(ious) + 1):
        if frame == 0:
            rows = [candidates(track.bank, (1.0,), is_prompted=True)]
        else:
            own = track.rows(frame, 1)
            rows = [candidates(row, ious[frame - 1][n], object_score) for n, row in enumerate(own)]
        choices = policy.choose(frame, rows, step=1)
        kept = []
        for choice in choices:
            iou = rows[choice.row].iou_scores[choice.candidate]
            result = ObjectFrame(torch.zeros(2, 2), torch.tensor(iou), torch.tensor(object_score), torch.zeros(1))
            one = FrameRecord(iou, object_score, BOX, 9, frame == 0, int(frame > 0), choice.row, dict(choice.notes))
            kept.append((result, torch.tensor(float(frame)), one))
        track.put(frame, kept, is_prompted=frame == 0)
        names.append(choices)
    return track


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("object_score", [5.0, 0.5])
def test_sam2long_keeps_the_three_best_pathways(seed, object_score):
    rng = np.random.default_rng(seed)
    ious = rng.choice(np.arange(0.1, 1.0, 0.1), (7, 3, 3)) + rng.choice([0.0, 0.001], (7, 3, 3))
    track = run_tree(Sam2LongPolicy(), ious, object_score)
    paths = [((), 0.0)]  # each a whole list of scores: nothing is shared
    for scores in ious:
        grown = [
            ((*path, scores[row][one]), total + math.log(scores[row][one]))
            for row, (path, total) in enumerate(paths)
            for one in range(3)
        ]
        grown.sort(key=lambda path: -path[1])
        if object_score <= 2:  # uncertain: one of each rounded score first
            rounded = [round(path[-1], 2) for path, _ in grown]
            first = [i for i in range(len(grown)) if rounded[i] not in rounded[:i]]
            order = first + [i for i in range(len(grown)) if i not in first]
            grown = sorted((grown[i] for i in order[:3]), key=lambda path: -path[1])
        paths = grown[:3]
    for row, (path, total) in zip(track.rows(8, 1), paths, strict=True):
        assert [row.record(frame).iou_score for frame in range(1, 8)] == list(path)
        np.testing.assert_allclose(row.record(7).notes["sum"], total)
    # What is shown at the end is the best pathway, from its beginning.
    assert [track.result(frame).iou_score.item() for frame in range(1, 8)] == pytest.approx(paths[0][0])


def test_without_hypotheses_a_track_reads_its_bank_alone():
    track = Track(0, ObjectMemory(), {})
    assert track.rows(5, 1) == [track.bank]
    assert track.final_row(3) == 0


def test_a_pathway_ends_where_tracking_turned():
    track = run_tree(Sam2LongPolicy(), np.full((4, 3, 3), 0.5), 5.0)
    track.put(9, [(track.bank[4], torch.zeros(1), replace(track.bank.records[4], step=-1))], is_prompted=False)
    (row,) = track.rows(8, -1)
    assert isinstance(row, Pathway)
    assert row.record(9).step == -1
    assert row.record(4) == track.bank.records[4]


@pytest.mark.parametrize("name", NEW)
def test_the_last_sight_of_an_object_is_remembered_however_long_it_is_away(name):
    policy, records = POLICIES[name].make(), {}
    for frame in range(2 * HISTORY_STEPS):
        score = 5.0 if frame <= 5 else -3.0
        row = candidates(history_of(records), (0.9,), score, is_prompted=frame == 0)
        (choice,) = policy.choose(frame, [row], step=1)
        records = {**records, frame: record(object_score=score, **choice.notes)}
        records = {other: one for other, one in records.items() if other <= 5 or other >= frame - 20}
    read = {one for one, _ in policy.select(2 * HISTORY_STEPS, history_of(records), step=1).maps}
    assert 5 in read


def test_walking_back_is_bounded():
    """Without notes, frames further back than ``HISTORY_STEPS`` are not read."""
    gone = {frame: record(object_score=-3.0) for frame in range(1, HISTORY_STEPS + 50)}
    records = {0: record()} | gone | {5: record(distractor=True)}
    for name in NEW:
        frame = HISTORY_STEPS + 50
        read = {one for one, _ in POLICIES[name].make().select(frame, history_of(records), step=1).maps}
        assert read <= {0, frame - 1}
        near = POLICIES[name].make().select(HISTORY_STEPS, history_of(records), step=1).maps
        assert 5 in {one for one, _ in near}


# What holds for all policies


def begun(sam, video, policy, **options):
    session = sam.video(video, policy=ALL[policy], **options)
    session.prompt(0, "cup", **CUP)
    return session


@pytest.fixture(scope="module")
def tracked(sam, video):
    """The masks of an uninterrupted run with each policy."""
    return {name: logits_of(begun(sam, video, name).track()) for name in ALL}


@pytest.fixture
def flickering(sam, monkeypatch):
    """The same network, whose object is in about every other frame."""
    decode = sam.engine.decode

    def decoding(features, prompts=None, **options):
        found = decode(features, prompts, **options)
        if prompts is not None:
            return found
        sign = torch.sign(found.logits.flatten(1).double().sum(1) * 1e3 % 2 - 1)[:, None, None]
        scores = found.object_scores.abs() * sign.to(found.object_scores.dtype)
        pointers = torch.where(scores[..., None] > 0, found.object_pointers, sam.model.no_object_pointer)
        return replace(found, object_scores=scores, object_pointers=pointers)

    monkeypatch.setattr(sam.engine, "decode", decoding)
    return sam


@pytest.mark.slow
def test_policies_differ(tracked, flickering, video):
    seen = [result.visible[0] for result in begun(flickering, video, "paper").track()]
    assert 3 < sum(seen) < FRAMES - 3  # the flickering object comes and goes
    last = {name: logits[FRAMES - 1, "cup"].tobytes() for name, logits in tracked.items()}
    assert len(set(last.values())) > 3  # otherwise the tests below test one policy


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_going_back_gives_the_masks_of_an_uninterrupted_run(flickering, video, name):
    expected = logits_of(begun(flickering, video, name).track())
    session = begun(flickering, video, name)
    list(session.track())
    assert_same(logits_of(session.track(start=5, end=9)), {k: v for k, v in expected.items() if 5 <= k[0] <= 9})
    assert_same(logits_of(session.track(start=3)), {k: v for k, v in expected.items() if k[0] >= 3})


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_stream_and_a_session_give_the_same_masks(flickering, video, name):
    expected = logits_of(begun(flickering, video, name).track())
    live = flickering.stream(policy=ALL[name])
    # A stream does not know its length, which distances in short videos depend on.
    session = begun(flickering, video, name)
    policy = session._tracks.policy
    if name != "samite":
        session._tracks.policy = replace(policy, length=None)
        expected = logits_of(session.track())
    pushed = [live.push(frame, {"cup": CUP} if not index else None) for index, frame in enumerate(video)]
    assert_same(logits_of(pushed), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_objects_do_not_touch_each_other(flickering, video, name):
    alone, together = begun(flickering, video, name), begun(flickering, video, name)
    together.prompt(0, "ball", **BALL)
    expected = logits_of(alone.track())
    list(together.track(end=8))
    together.prompt(5, "ball", points=[(10, 10, 0)])
    assert_same(logits_of(together.track()), expected, among=expected)
    together.remove("ball")
    assert_same(logits_of(together.track()), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_removed_correction_leaves_no_trace(flickering, video, name):
    session = begun(flickering, video, name)
    expected = logits_of(session.track())
    session.prompt(6, "cup", points=[(60, 40, 0)])
    assert any((a != expected[k]).any() for k, a in logits_of(session.track()).items())
    session.remove("cup", frame=6)
    assert_same(logits_of(session.track()), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_correction_replaces_all_hypotheses_and_repeats(flickering, video, name):
    runs = []
    for _ in range(2):
        session = begun(flickering, video, name)
        list(session.track())
        corrected = session.prompt(6, "cup", points=[(60, 40, 0)]).logits
        track = session._tracks.objects["cup"]
        assert [6 in bank for bank in track.banks] == [True] + [False] * len(track.other_banks)
        runs.append(logits_of(session.track(start=6)))
        np.testing.assert_array_equal(runs[-1][6, "cup"], corrected[0])
    assert_same(*runs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_both_directions(flickering, video, name):
    both, twice = (flickering.video(video, policy=ALL[name]) for _ in range(2))
    for session in (both, twice):
        session.prompt(7, "cup", **CUP)
    expected = logits_of([*twice.track(), *twice.track(start=6, direction="backward")])
    found = logits_of(both.track(direction="both"))
    assert {frame for frame, _ in found} == set(range(FRAMES))
    assert_same(found, expected)
    reverse = flickering.video(video[::-1], policy=ALL[name])
    reverse.prompt(FRAMES - 8, "cup", **CUP)
    mirrored = {(FRAMES - 1 - frame, one): value for (frame, one), value in logits_of(reverse.track()).items()}
    alone = flickering.video(video, policy=ALL[name])
    alone.prompt(7, "cup", **CUP)
    backward = logits_of(alone.track(direction="backward"))
    if name != "dam4sam":  # its grid of recent frames counts from the beginning of the video
        assert_same(mirrored, backward)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_what_is_discovered_is_tracked_as_if_it_was_prompted(flickering, video, name, monkeypatch):
    mask = np.zeros((1, *video[0].shape[:2]), bool)
    mask[0, 10:34, 20:50] = True
    found = Masks.from_rle(encode_rle(mask), mask.shape[1:], np.ones(1, "f4"), np.ones(1, int))
    monkeypatch.setattr("masklet.video.discovery.everything", lambda *a, **k: found)
    session, prompted = (flickering.video(video, policy=ALL[name]) for _ in range(2))
    discovered = logits_of(session.everything(every=100, min_object=0))
    prompted.prompt(0, 1, mask=mask[0])
    assert len(discovered) == FRAMES
    assert_same(discovered, logits_of(prompted.track()))
    again = [result.masks.logits.tobytes() for result in session.results()]
    assert again == [result.masks.logits.tobytes() for result in prompted.results()]
    assert_same(logits_of(session.track(start=4)), {k: v for k, v in discovered.items() if k[0] >= 4})


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_resumed_session_continues_to_the_bit(flickering, video, name, tmp_path):
    session = begun(flickering, video, name)
    list(session.track(end=8))
    session.save(tmp_path / "s")
    own = {"policy": ALL[name]} if name == "samite" else {}
    resumed = flickering.resume(tmp_path / "s", video, **own)
    assert resumed._tracks.policy == session._tracks.policy
    banks = [one._tracks.objects["cup"].banks for one in (session, resumed)]
    for ours, theirs in zip(*banks, strict=True):
        assert dict(ours.records) == dict(theirs.records)
        assert ours.frames == theirs.frames
    shown = [[r.masks.logits.tobytes() for r in s.results()] for s in (session, resumed)]
    assert shown[0] == shown[1]
    assert_same(logits_of(resumed.track(start=9)), logits_of(session.track(start=9)))
    assert_same(logits_of(resumed.track(start=2)), logits_of(session.track(start=2)))


def test_a_policy_of_ones_own_has_to_be_passed_to_resume(sam, video, tmp_path):
    begun(sam, video, "samite").save(tmp_path / "s")
    with pytest.raises(
        SessionError, match=r"'SamitePolicy', which is not masklet's: pass it, sam.resume\(path, policy="
    ):
        sam.resume(tmp_path / "s", video)
    begun(sam, video, "sam3").save(tmp_path / "t")
    with pytest.raises(SessionError, match="expected none, since the session knows its own"):
        sam.resume(tmp_path / "t", video, policy=SamitePolicy())


@pytest.mark.slow
def test_sam2long_shows_the_finally_best_pathway_when_results_are_read_again(flickering, video):
    session = begun(flickering, video, "sam2long")
    yielded = logits_of(session.track())
    track = session._tracks.objects["cup"]
    again = logits_of(session.results())
    row, path = 0, {}
    for frame in range(FRAMES - 1, -1, -1):
        path[frame] = track.banks[row][frame].logits.numpy()
        row = track.banks[row].records[frame].parent
    for frame, logits in path.items():
        np.testing.assert_array_equal(again[frame, "cup"], logits)
    assert again.keys() == yielded.keys()
    np.testing.assert_array_equal(again[FRAMES - 1, "cup"], yielded[FRAMES - 1, "cup"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NEW)
def test_the_first_prompted_frame_is_always_read(sam, video, name):
    """However many others there are, in sessions and in streams."""
    session = begun(sam, video, name, max_prompted=2)
    live = sam.stream(policy=name, max_prompted=2)
    read = []
    for index, frame in enumerate(video):
        live.push(frame, {"cup": CUP} if index % 3 == 0 else None)
        bank = live._tracks.objects["cup"].bank
        read.append({f for f, slot in live.policy.select(index + 1, bank, step=1).maps if slot == 6})
        if index % 3 == 0 and index:
            session.prompt(index, "cup", **CUP)
    assert all(0 in frames for frames in read)
    assert {len(frames) for frames in read if len(frames) > 1} == {2}
    bank = session._tracks.objects["cup"].bank
    assert {f for f, slot in session._tracks.policy.select(13, bank, step=1).maps if slot == 6} == {0, 12}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_stream_prompted_again_and_again_holds_a_bounded_number_of_frames(sam, video, name):
    live = sam.stream(policy=ALL[name])
    held = []
    for index in range(60):
        live.push(video[index % FRAMES], {"cup": CUP} if index % 2 == 0 else None)
        bank = live._tracks.objects["cup"].bank
        held.append((len(bank.prompted), len(bank.maps), len(bank.frames)))
    assert held[-1] == held[-3]
    assert held[-1][1] <= 8 + 8 + 7
    if name in NEW:
        assert 0 in bank.prompted


def test_memory_bytes_count_all_hypotheses(sam, video):
    live, session = sam.stream(policy="sam2long"), begun(sam, video, "sam2long")
    for index, frame in enumerate(video[:4]):
        live.push(frame, {"cup": CUP} if not index else None)
    list(session.track(end=3))
    for one in (live, session):
        (track,) = one._tracks.objects.values()
        assert len(track.banks) == 3
        assert one.memory_bytes() >= sum(bank.tensor_bytes() for bank in track.banks) > 2 * track.bank.tensor_bytes()


@pytest.mark.slow
def test_the_pointer_of_an_absent_object_says_so_and_is_read_by_the_papers_policy_alone(sam, video):
    model = make_absent(sam)
    for name in ("paper", *NEW):
        session = begun(model, video, name)
        list(session.track(end=6))
        bank = session._tracks.objects["cup"].bank
        for frame in range(1, 7):
            torch.testing.assert_close(bank.pointer(frame), model.model.no_object_pointer[0], rtol=0, atol=0)
            assert (bank[frame].logits == -1024).all()
        selection = session._tracks.policy.select(7, bank, step=1)
        maps = {frame for frame, _ in selection.maps}
        pointers = {frame for frame, _ in selection.pointers}
        expected = {
            "paper": (set(range(7)), set(range(7))),
            "sam3": ({0, 6}, {0, 6}),  # the neighbour in any case
            "samurai": ({0, 6}, set(range(7))),
            "dam4sam": ({0}, {0}),
            "sam2long": ({0}, {0}),
        }
        assert (maps, pointers) == expected[name], name


def make_absent(sam):
    model = copy.deepcopy(sam.model)
    model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(-20.0)
    return Segmenter(make_engine(model), sam.image_processor)


def test_the_papers_policy_neither_reads_scores_back_nor_keeps_records(sam, video, monkeypatch):
    def refuse(*_):
        raise AssertionError("the paper's policy needs no candidates")

    monkeypatch.setattr("masklet.video.frame_step.row_outputs", refuse)
    session = begun(sam, video, "paper")
    list(session.track(end=3))
    assert not session._tracks.objects["cup"].bank.records


@pytest.mark.parametrize("name", NEW)
def test_constants_are_parameters_that_are_saved(sam, video, name, tmp_path):
    changed = {
        "sam3": "least_score",
        "samurai": "motion_weight",
        "dam4sam": "alternative_iou",
        "sam2long": "memory_iou",
    }
    policy = POLICIES[name].make(**{changed[name]: 0.42})
    session = sam.video(video, policy=policy)
    session.save(tmp_path / "s")
    assert sam.resume(tmp_path / "s", video)._tracks.policy == policy
    assert asdict(policy)[changed[name]] == 0.42


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([], "keeps 0 candidates of frame 0: expected 1 to 1, its hypotheses"),
        ([Choice(0), Choice(0)], "keeps 2 candidates of frame 0: expected 1 to 1"),
        ([Choice(3)], "chooses candidate 3 of row 0 in frame 0: expected one of 1 rows with 1 candidates"),
        ([Choice(0, notes={"nan": math.nan})], "notes {'nan': nan} for frame 0: expected what JSON holds"),
        ([Choice(0, notes={"map": np.zeros(2)})], "for frame 0: expected what JSON holds"),
    ],
)
def test_choices_that_cannot_be_kept_are_refused(sam, video, choices, message):
    class Broken(SamitePolicy):
        def choose(self, frame, rows, *, step):
            return choices

    with pytest.raises(ConfigError, match=message):
        sam.video(video, policy=Broken()).prompt(0, "cup", **CUP)


def test_key_weights_scale_attention_in_every_engine(sam, video):
    outputs = {}
    for engine, weights in product(("eager", "cpu"), (None, (1.0, 1.0), (1.0, 0.2))):
        session = Segmenter(make_engine(sam.model, engine), sam.image_processor).video(video, policy="paper")
        session.prompt(0, "cup", **CUP)
        list(session.track(end=1))
        select = session._tracks.policy.select
        weighted = replace(select(2, session._tracks.objects["cup"].bank, step=1), key_weights=weights)
        session._tracks.policy = Fixed(weighted)
        (result,) = session.track(start=2, end=2)
        outputs[engine, weights] = result.masks.logits
    np.testing.assert_array_equal(outputs["eager", None], outputs["eager", (1.0, 1.0)])
    scale = np.abs(outputs["eager", None]).max()
    assert np.abs(outputs["eager", None] - outputs["eager", (1.0, 0.2)]).max() > 2e-3 * scale
    for weights in (None, (1.0, 1.0), (1.0, 0.2)):
        assert np.abs(outputs["cpu", weights] - outputs["eager", weights]).max() < 1e-3 * scale


class Fixed(PaperPolicy):
    def __init__(self, selection):
        super().__init__()
        object.__setattr__(self, "selection", selection)

    def select(self, frame, history, *, step):
        return self.selection


def test_too_few_key_weights_are_refused(sam, video):
    session = begun(sam, video, "paper")
    chosen = session._tracks.policy.select(1, session._tracks.objects["cup"].bank, step=1)
    session._tracks.policy = Fixed(replace(chosen, key_weights=(1.0, 2.0)))
    with pytest.raises(ConfigError, match="gives 2 key weights for 1 maps in frame 1: expected one for each map"):
        list(session.track())


def test_boxes_that_do_not_overlap_have_no_iou():
    assert box_iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0
    assert box_iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
