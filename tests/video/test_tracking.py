"""Tracking objects in a video and in a stream: corrections, rewinds and memory. Weights are random."""

import copy
import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

from masklet.engine import make_engine
from masklet.errors import CheckpointError, ImageError, PromptError, SessionError, VideoError
from masklet.masks import PackedMasks
from masklet.model.sam2 import Sam2Model
from masklet.segmenter import Segmenter
from masklet.video import frame_step, tracks
from masklet.video.memory import ObjectMemory
from masklet.video.object_frame import ObjectFrame, ResultPacking, ResultSpool
from masklet.video.spool import Spool

HEIGHT, WIDTH = 48, 80
CUP = {"points": [(20, 20), (30, 24)]}
BALL = {"box": (40, 8, 70, 40)}


def moving_square(frames, size=12):
    """A bright square that crosses a noisy image."""
    rng = np.random.default_rng(0)
    back = rng.integers(0, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    video = []
    for index in range(frames):
        frame = back.copy()
        x = (10 + 2 * index) % (WIDTH - size)
        frame[16 : 16 + size, x : x + size] = (240, 200, 40)
        video.append(frame)
    return video


@pytest.fixture(scope="module")
def video():
    return moving_square(20)


def logits_of(results):
    return {(r.index, name): r[name].logits[0] for r in results for name in r.object_ids}


def assert_same(ours, theirs, among=None):
    keys = theirs.keys() if among is None else among
    assert set(ours) >= set(keys)
    for key in keys:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=str(key))


@pytest.mark.parametrize("box", [[[40, 8, 70, 40]], np.array([[40, 8, 70, 40]])])
def test_a_box_may_be_nested_once_as_in_metas_examples(sam, video, box):
    nested, plain = (sam.video(video).prompt(0, "ball", box=given) for given in (box, BALL["box"]))
    np.testing.assert_array_equal(nested.logits, plain.logits)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"box": np.zeros((0, 4))}, "box holds 0 boxes: expected"),
        ({"box": [BALL["box"], BALL["box"]]}, "box holds 2 boxes: .* in a video, prompt each object with its own box"),
        ({"points": np.zeros((0, 1, 2))}, "points for 0 objects: expected one list"),
        ({"points": []}, "points are empty: expected at least one"),
    ],
)
def test_a_prompt_of_a_video_is_for_one_object(sam, video, prompt, message):
    session = sam.video(video)
    with pytest.raises(PromptError, match=message):
        session.prompt(0, "ball", **prompt)
    assert session.object_ids == ()


def test_a_result_has_masks_scores_and_boxes_of_each_object(sam, video):
    session = sam.video(video)
    session.prompt(0, "cup", **CUP)
    session.prompt(0, "ball", **BALL)
    results = list(session.track(end=3))
    assert [r.index for r in results] == [0, 1, 2, 3]
    for result in results:
        assert result.object_ids == ("cup", "ball")
        assert result.masks.masks.shape == (2, HEIGHT, WIDTH)
        assert result.iou_scores.shape == result.visible.shape == result.object_scores.shape == (2,)
        assert result.masks.boxes.shape == (2, 4)
        assert len(result["ball"]) == 1


def test_a_stream_gives_the_results_of_a_video_to_the_bit(sam, video):
    session, live = sam.video(video), sam.stream()
    session.prompt(0, "cup", **CUP)
    session.prompt(3, "ball", **BALL)
    session.remove("ball")
    session.prompt(0, "ball", **BALL)
    expected = list(session.track())
    pushed = [live.push(frame, {"cup": CUP, "ball": BALL} if not index else None) for index, frame in enumerate(video)]
    assert_same(logits_of(pushed), logits_of(expected))


@pytest.mark.parametrize("max_objects", [1, 16])
@pytest.mark.parametrize("kind", ["corrected", "removed", "added"])
def test_prompts_for_one_object_do_not_change_another(sam, video, kind, max_objects):
    alone, together = sam.video(video), sam.video(video, max_objects=max_objects)
    for session in (alone, together):
        session.prompt(0, "cup", **CUP)
    if kind != "added":
        together.prompt(0, "ball", **BALL)
    expected = list(alone.track())
    list(together.track(end=9))
    if kind == "corrected":
        together.prompt(5, "ball", points=[(10, 10, 0)])
    elif kind == "removed":
        together.remove("ball")
    else:
        together.prompt(6, "ball", **BALL)
    expected = logits_of(expected)
    assert_same(logits_of(together.track()), expected, among=expected)


def assert_close(ours, theirs):
    """Logits within 1e-4, and the same masks but for pixels whose logits are that close to 0."""
    for key, logits in theirs.items():
        assert np.linalg.norm(ours[key] - logits) <= 1e-4 * np.linalg.norm(logits), key
        is_clear = np.abs(logits) > 1e-4 * logits.std()
        np.testing.assert_array_equal((ours[key] > 0)[is_clear], (logits > 0)[is_clear], err_msg=str(key))


OBJECTS = {
    "cup": (0, CUP),
    "ball": (0, BALL),
    "box": (0, {"box": (4, 4, 40, 40)}),
    "late": (4, {"points": [(60, 40)]}),  # its memory is shorter than the others'
    "twice": (0, {"points": [(50, 20), (10, 40, 0)]}),
}


def tracked_together(sam, video, *, max_objects, fixed_shapes=False, **track):
    session = sam.video(video, max_objects=max_objects)
    session._tracks.fixed_shapes = fixed_shapes
    for name, (frame, prompt) in OBJECTS.items():
        session.prompt(frame, name, **prompt)
    session.prompt(7, "twice", box=(5, 5, 50, 45))
    return logits_of(session.track(**track))


def test_objects_are_tracked_in_batches_as_they_are_one_by_one(sam, video, monkeypatch):
    expected = tracked_together(sam, video, max_objects=1)
    sizes, read_memory = [], sam.engine.read_memory
    monkeypatch.setattr(
        sam.engine,
        "read_memory",
        lambda features, memory: sizes.append(len(memory.maps)) or read_memory(features, memory),
    )
    assert_same(tracked_together(sam, video, max_objects=3), expected)
    assert max(sizes) == 3


def test_hundreds_of_objects_are_tracked(sam, video):
    session = sam.video(video)
    for name in range(150):
        session.prompt(0, name, points=[(name % WIDTH, name % HEIGHT)])
    results = list(session.track(end=1))
    assert [len(result.masks) for result in results] == [150, 150]
    assert results[1].object_ids == tuple(range(150))


def test_empty_slots_change_no_result_and_keep_shapes_fixed(sam, video, monkeypatch):
    expected = tracked_together(sam, video, max_objects=16)
    shapes, read_memory = set(), sam.engine.read_memory

    def recording(features, memory):
        shapes.add((memory.maps.shape[1], memory.pointers.shape[1]))
        return read_memory(features, memory)

    monkeypatch.setattr(sam.engine, "read_memory", recording)
    assert_close(tracked_together(sam, video, max_objects=16, fixed_shapes=True), expected)
    assert len(shapes) == 2  # one for a prompted frame, one for two


def test_a_frame_before_the_first_prompt_reads_no_pointer(sam, video):
    """Pointers of later frames are not read, so all slots of pointers are empty."""
    session, fixed = sam.video(video), sam.video(video)
    fixed._tracks.fixed_shapes = True
    for one in (session, fixed):
        one.prompt(10, "cup", **CUP)
    bank = session._tracks.objects["cup"].bank
    assert session._tracks.policy.select(5, bank, step=1).pointers == ()
    assert_close(logits_of(fixed.track(start=5, end=8)), logits_of(session.track(start=5, end=8)))


def test_a_removed_prompt_is_not_read_by_the_next_click(sam, video, monkeypatch):
    session = sam.video(video)
    session.prompt(0, "cup", **CUP)
    list(session.track())
    session.prompt(2, "cup", points=[(70, 40)])
    read = []
    original = tracks.track_object
    monkeypatch.setattr(tracks, "track_object", lambda *a: read.append(a[3]) or original(*a))
    session.prompt(8, "cup", points=[(40, 30, 0)])  # reads the memory of frame 2
    session.remove("cup", frame=2)
    session.prompt(8, "cup", points=[(50, 30, 0)])
    assert not read[0].equal(read[1])


@pytest.mark.parametrize(
    ("direction", "indices"), [("forward", [2, 5, 8, 11, 14, 17]), ("backward", [14, 11, 8, 5, 2])]
)
def test_every_third_frame_is_tracked_like_a_video_of_those_frames(sam, video, direction, indices):
    whole, third = sam.video(video), sam.video([video[index] for index in sorted(indices)])
    for session, frame in ((whole, indices[0]), (third, sorted(indices).index(indices[0]))):
        session.prompt(frame, "cup", **CUP)
        session._tracks.policy = replace(session._tracks.policy, length=None)  # distances in short videos vary with it
    found = list(whole.track(direction=direction, every=3))
    assert [result.index for result in found] == indices
    for ours, theirs in zip(found, third.track(direction=direction), strict=True):
        np.testing.assert_array_equal(ours.masks.logits, theirs.masks.logits)


def test_a_correction_stays_and_guides_the_frames_after_it(sam, video):
    session = sam.video(video)
    session.prompt(0, "cup", **CUP)
    before = logits_of(session.track())
    corrected = session.prompt(6, "cup", points=[(40, 30, 0)])
    after = logits_of(session.track())
    assert_same(after, {(6, "cup"): corrected.logits[0]})
    assert not np.array_equal(after[6, "cup"], before[6, "cup"])
    assert any(not np.array_equal(after[i, "cup"], before[i, "cup"]) for i in range(7, len(video)))


def test_a_corrected_frame_is_not_tracked_again(sam, video):
    """Unlike in a tracker that reads the memory of the corrected frame but then tracks that frame like any other."""
    ours, naive = sam.video(video), sam.video(video)
    for session in (ours, naive):
        session.prompt(0, "cup", **CUP)
        list(session.track())
    corrected = ours.prompt(6, "cup", points=[(40, 30, 0)]).logits[0]
    naive.prompt(6, "cup", points=[(40, 30, 0)])
    bank = naive._tracks.objects["cup"].bank
    bank.prompted.discard(6)
    kept, lost = logits_of(ours.track()), logits_of(naive.track())
    np.testing.assert_array_equal(kept[6, "cup"], corrected)
    assert not np.array_equal(lost[6, "cup"], corrected)
    assert any(not np.array_equal(kept[frame, "cup"], lost[frame, "cup"]) for frame in range(7, len(video)))


def test_a_correction_depends_on_memory_and_on_all_clicks_of_its_frame(sam, video):
    def corrected(first, second, tracked):
        session = sam.video(video)
        session.prompt(0, "cup", **CUP)
        if tracked:
            list(session.track(end=8))
        session.prompt(5, "cup", points=[first])
        return session.prompt(5, "cup", points=[second]).logits

    base = corrected((30, 30), (50, 20, 0), tracked=True)
    assert not np.array_equal(base, corrected((30, 30), (50, 20, 0), tracked=False))
    assert not np.array_equal(base, corrected((12, 40), (50, 20, 0), tracked=True))


def test_a_removed_prompt_leaves_no_trace(sam, video):
    plain, corrected = sam.video(video), sam.video(video)
    for session in (plain, corrected):
        session.prompt(0, "cup", **CUP)
    expected = logits_of(plain.track())
    list(corrected.track())
    corrected.prompt(6, "cup", points=[(40, 30, 0)])
    assert not np.array_equal(logits_of(corrected.track())[6, "cup"], expected[6, "cup"])
    corrected.remove("cup", frame=6)
    assert_same(logits_of(corrected.track()), expected)
    with pytest.raises(PromptError, match="was not prompted in frame 6: it was in 0"):
        corrected.remove("cup", frame=6)
    with pytest.raises(PromptError, match="only prompt of object 'cup'"):
        corrected.remove("cup", frame=0)


def test_a_mask_is_taken_as_it_is(sam, video):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[12:36, 20:60] = True
    session = sam.video(video)
    prompted = session.prompt(2, "cup", mask=mask)
    assert (prompted.masks[0] == mask).mean() > 0.97
    first = next(session.track(start=2))
    np.testing.assert_array_equal(first["cup"].logits, prompted.logits)
    assert first.iou_scores[0] == 1


def test_tracking_goes_backward_and_in_both_directions(sam, video):
    session = sam.video(video)
    session.prompt(10, "cup", **CUP)
    assert [r.index for r in session.track(direction="backward")] == list(range(10, -1, -1))
    both = [r.index for r in session.track(direction="both")]
    assert both == [*range(10, len(video)), *range(9, -1, -1)]
    assert [r.index for r in session.track(start=12, end=7, direction="backward")] == [12, 11, 10, 9, 8, 7]


def test_dropped_maps_are_computed_again_to_the_bit(sam, video):
    """From the packed results, one object and one frame at a time as at first."""
    dropping, keeping = sam.video(video), sam.video(video)
    for session in (dropping, keeping):
        session.prompt(0, "cup", **CUP)
        list(session.track())
    bank = dropping._tracks.objects["cup"].bank
    kept = dict(keeping._tracks.objects["cup"].bank.maps)
    bank.keep_maps(set())
    assert not bank.maps
    assert kept
    assert_same(logits_of(dropping.track(start=9)), logits_of(keeping.track(start=9)))


def bank_bytes_after(make, frames):
    held = make(moving_square(frames))
    return held._tracks.objects["cup"].bank.tensor_bytes()


@pytest.mark.slow
def test_a_stream_holds_as_much_after_160_frames_as_after_100(sam):
    def stream(frames):
        live = sam.stream()
        for index, frame in enumerate(frames):
            live.push(frame, {"cup": CUP} if index % 10 == 0 else None)
        return live

    assert bank_bytes_after(stream, 160) == bank_bytes_after(stream, 100)


def test_a_session_holds_as_many_maps_after_60_frames_as_after_30(sam):
    def session(frames):
        session = sam.video(frames)
        session.prompt(0, "cup", **CUP)
        for _ in session.track():
            pass
        return session

    long, short = session(moving_square(60)), session(moving_square(30))
    assert len(long._tracks.objects["cup"].bank.maps) == len(short._tracks.objects["cup"].bank.maps)
    assert len(long._encoded) <= 2


def test_packed_results_are_unpacked_exactly():
    generator = torch.Generator().manual_seed(0)
    result = ObjectFrame(
        torch.randn(12, 20, generator=generator) * 9, torch.tensor(0.5), torch.tensor(2.0), torch.randn(8)
    )
    packing = ResultPacking((12, 20), 8, torch.float32, torch.device("cpu"))
    bank = ObjectMemory(ResultSpool(Spool(limit_bytes=100), packing))  # on disk
    for frame in range(3):
        bank.put(frame, result, torch.zeros(1, dtype=torch.bfloat16), is_prompted=frame == 1)
    assert torch.equal(bank[0].logits, result.logits)
    assert torch.equal(bank.pointer(2), result.pointer)
    assert bank.tracked == {0, 2}


ERRORS = {
    "nothing": (lambda s: s.track(), "nothing to track"),
    "beyond the end": (lambda s: s.prompt(99, **CUP), "99"),
    "before the beginning": (lambda s: s.prompt(-1, **CUP), "no frame -1"),
    "a mask too small to see": (
        lambda s: s.prompt(0, mask=np.eye(HEIGHT, WIDTH) * (np.arange(WIDTH) == 9)),
        "too small",
    ),
    "unknown object": (lambda s: s.remove("saucer"), "no object 'saucer'"),
    "empty mask": (lambda s: s.prompt(0, mask=np.zeros((HEIGHT, WIDTH), bool)), "mask is empty"),
    "mask of another size": (lambda s: s.prompt(0, mask=np.ones((3, 3), bool)), r"mask has shape \(3, 3\)"),
    "mask of words": (lambda s: s.prompt(0, mask="mask.png"), "mask is a str and holds no plain numbers"),
    "mask with a hole of NaN": (lambda s: s.prompt(0, mask=np.full((HEIGHT, WIDTH), np.nan)), "mask holds NaN"),
    "faint soft mask": (
        lambda s: s.prompt(0, mask=np.linspace(0.1, 0.4, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)),
        "mask is empty: expected at least one pixel of the object",
    ),
    "labels with a mask": (
        lambda s: s.prompt(0, mask=np.ones((HEIGHT, WIDTH), bool), labels=[1]),
        "labels came without points",
    ),
    "points with a mask, outside": (
        lambda s: s.prompt(0, mask=np.ones((HEIGHT, WIDTH), bool), points=[(500, 3)]),
        "outside the image",
    ),
    "points with a mask too small": (
        lambda s: s.prompt(0, mask=np.eye(HEIGHT, WIDTH) * (np.arange(WIDTH) == 9), **CUP),
        "too small",
    ),
    "points as the object": (lambda s: s.prompt(0, [(20, 20)], **CUP), "Points go into points=, a box into box="),
    "an id that is not itself": (lambda s: s.prompt(0, float("nan"), **CUP), "object is nan: expected an id such as"),
    "frame as text": (lambda s: s.prompt("0", **CUP), "frame is '0': expected a whole number"),
    "half a frame": (lambda s: s.prompt(0.5, **CUP), "frame is 0.5: expected a whole number"),
    "a frame beyond all videos": (lambda s: s.prompt(10**400, **CUP), "frame is 1000"),
    "a truth as a frame": (lambda s: s.prompt(True, **CUP), "frame is True: expected a whole number"),
    "no prompt": (lambda s: s.prompt(0), "nothing to segment"),
    "outside": (lambda s: s.prompt(0, points=[(500, 3)]), "outside the image"),
    "every": (lambda s: s.track(every=0), "every is 0: expected a whole number, 1 or more"),
    "direction": (lambda s: s.track(direction="up"), "expected forward, backward or both"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_invalid_arguments_are_refused_at_the_call_and_change_nothing(sam, video, case):
    act, message = ERRORS[case]
    session = sam.video(video)
    with pytest.raises(ValueError, match=message):
        act(session)
    assert session.object_ids == ()


@pytest.mark.parametrize("where", [{"start": -5}, {"start": 20}, {"end": -1}, {"end": -2, "direction": "backward"}])
def test_frames_that_do_not_exist_are_refused_at_the_call(sam, video, where):
    session = sam.video(video)
    session.prompt(0, "cup", **CUP)
    with pytest.raises(VideoError, match="has no such frame"):
        session.track(**where)


def test_a_result_has_no_other_objects(sam, video):
    session = sam.video(video)
    session.prompt(0, "cup", **CUP)
    with pytest.raises(PromptError, match="no object 'saucer': the video's objects are 'cup'"):
        next(session.track())["saucer"]


def test_an_invalid_prompt_leaves_a_stream_as_it_was(sam, video):
    careful, careless = sam.stream(), sam.stream()
    for live in (careful, careless):
        live.push(video[0], {"cup": CUP, "ball": BALL})
    for bad in ({"points": [(500, 3)]}, {"point": [(5, 3)]}):
        with pytest.raises((PromptError, TypeError)):
            careless.push(video[1], {"cup": {"points": [(12, 12)]}, "ball": bad})
    for frame in video[1:4]:
        np.testing.assert_array_equal(careless.push(frame).masks.logits, careful.push(frame).masks.logits)


def test_all_clicks_of_a_correction_read_the_same_memory(sam, video, monkeypatch):
    """Otherwise the second click would read the result that it corrects."""
    session = sam.video(video)
    session.prompt(0, "cup", **CUP)
    list(session.track(end=8))
    read = []
    original = tracks.track_object
    monkeypatch.setattr(tracks, "track_object", lambda *a: read.append(a[3]) or original(*a))
    for x in (30, 40, 50):
        session.prompt(5, "cup", points=[(x, 20, 0)])
    assert read[0].equal(read[1])
    assert read[0].equal(read[2])
    list(session.track(start=5, end=6))
    session.prompt(5, "cup", points=[(20, 20)])
    assert not read[3].equal(read[0])


def test_a_rewind_encodes_each_frame_once_for_all_objects(sam, video, monkeypatch):
    session = sam.video(video)
    for name in range(5):
        session.prompt(0, name, points=[(10 * name + 5, 20)])
    list(session.track())
    encoded, encode = [], sam.engine.encode
    monkeypatch.setattr(sam.engine, "encode", lambda pixels: encoded.append(1) or encode(pixels))
    list(session.track(start=12, end=12))
    assert len(encoded) == 7  # that frame and the six before it


def test_removing_an_object_does_not_change_the_numbers_of_others(sam, video):
    live = sam.stream()
    live.push(video[0], {"cup": CUP, "ball": BALL})
    live.remove("cup")
    assert live.push(video[1]).masks.object_ids.tolist() == [1]
    assert live.push(video[2], {"lid": CUP}).masks.object_ids.tolist() == [1, 2]


def test_a_session_holds_as_much_after_60_frames_as_after_30_and_prompts_hold_few_maps(sam):
    def session(frames):
        session = sam.video(moving_square(frames), max_prompted=3)
        session.prompt(0, "cup", **CUP)
        list(session.track())
        return session

    assert (
        session(60)._tracks.objects["cup"].bank.tensor_bytes() == session(30)._tracks.objects["cup"].bank.tensor_bytes()
    )
    prompted = sam.video(moving_square(30), max_prompted=3)
    for frame in range(30):
        prompted.prompt(frame, "cup", **CUP)
    assert len(prompted._tracks.objects["cup"].bank.maps) <= 3 + 15


def test_the_spool_uses_freed_space_again(sam, video):
    session = sam.video(video)
    session.prompt(0, "cup", **CUP)
    list(session.track())
    spool = session._tracks.spool
    once = spool._end
    for _ in range(6):
        list(session.track())
    session.reset()
    session.prompt(0, "cup", **CUP)
    list(session.track())
    assert spool._end <= 1.5 * once


def test_a_frame_of_another_size_is_refused_and_the_stream_continues(sam, video):
    live = sam.stream()
    live.push(video[0], {"cup": CUP})
    with pytest.raises(ImageError, match="expected one size"):
        live.push(video[1][:20])
    assert live.push(video[1]).index == 1


def test_objects_of_a_stream_are_added_corrected_and_removed(sam, video):
    live = sam.stream()
    assert live.push(video[0]).object_ids == ()
    assert live.push(video[1], {"cup": CUP}).object_ids == ("cup",)
    tracked = live.push(video[2])
    corrected = live.correct("cup", points=[(40, 30, 0)])
    assert corrected.index == 2
    assert not np.array_equal(corrected.masks.logits, tracked.masks.logits)
    live.remove("cup")
    assert live.push(video[3]).object_ids == ()
    with pytest.raises(PromptError, match="no object 'cup'"):
        live.remove("cup")


def test_an_absent_object_has_an_empty_mask(sam, video):
    model = copy.deepcopy(sam.model)
    model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(-10.0)
    live = Segmenter(make_engine(model), sam.image_processor).stream()
    result = live.push(video[0], {"cup": CUP})
    assert not result.visible[0]
    assert result.masks.areas[0] == 0
    assert (result.masks.logits == -1024).all()


def test_a_video_is_tracked_in_bfloat16(sam, video):
    """Without autocast: each part of the network takes the precision that the part before it gives."""
    model = copy.deepcopy(sam.model).to(torch.bfloat16)
    session, exact = Segmenter(make_engine(model), sam.image_processor).video(video), sam.video(video)
    for one in (session, exact):
        one.prompt(0, "cup", mask=video[0][..., 0] > 200)
        one.prompt(0, "ball", **BALL)
    results, expected = list(session.track(end=4)), list(exact.track(end=4))
    session.prompt(3, "ball", points=[(10, 10, 0)])
    assert len(list(session.track(start=3, end=5))) == 3
    np.testing.assert_array_equal(results[0]["cup"].masks, expected[0]["cup"].masks)  # a mask is taken as it is
    for ours, theirs in zip(results, expected, strict=True):
        assert np.isfinite(ours.masks.logits).all()
        assert (ours.masks.masks == theirs.masks.masks).mean() > 0.9


def test_a_batch_of_no_objects_is_refused(sam, video):
    with pytest.raises(PromptError, match="max_objects is 0: expected a whole number, 1 or more"):
        sam.video(video, max_objects=0)


def test_a_model_without_memory_is_refused(sam, video):
    model = Sam2Model(replace(sam.model.config, has_memory=False)).eval()
    with pytest.raises(CheckpointError, match="saved without its memory"):
        Segmenter(make_engine(model), sam.image_processor).video(video)


@pytest.mark.parametrize(
    "arguments",
    [{"every": 1.5}, {"start": "3"}, {"end": 2.5}, {"direction": "up"}, {"every": 0}, {"start": 99}, {"end": -1}],
)
def test_track_refuses_invalid_arguments_when_it_is_called(sam, video, arguments):
    session = sam.video(video)
    session.prompt(0, "cup", **CUP)
    (name,) = arguments
    with pytest.raises((PromptError, VideoError), match=f"^{name} is "):
        session.track(**arguments)


def test_frames_may_be_numbers_of_numpy(sam, video):
    session = sam.video(video)
    session.prompt(np.int64(3), "cup", **CUP)
    session.prompt(np.int64(5), "cup", **CUP)
    assert [r.index for r in session.track(start=np.int32(4), end=np.int64(6))] == [4, 5, 6]
    session.remove("cup", frame=np.int64(3))
    with pytest.raises(PromptError, match=r"frame is 1\.5: expected a whole number"):
        session.prompt(1.5, "cup", **CUP)


def test_the_mask_of_a_prompt_can_be_overlaid(sam, video):
    session = sam.video(video)
    for frame in (0, 7, 7, 3):
        masks = session.prompt(frame, "cup", **CUP)
        np.testing.assert_array_equal(masks.image, video[frame])
        assert masks.overlay().size == (WIDTH, HEIGHT)


def test_the_mask_of_a_prompt_in_a_video_that_is_read_once_can_be_overlaid(sam, video):
    session = sam.video(iter(video))
    for frame in (0, 0, 4):
        np.testing.assert_array_equal(session.prompt(frame, "cup", **CUP).image, video[frame])


def test_packed_results_hold_the_same_masks_as_run_lengths(sam, video):
    session, live = sam.video(video), sam.stream()
    session.prompt(0, "cup", **CUP)
    session.prompt(0, "ball", **BALL)
    expected = list(session.track(end=2))
    packed = list(session.track(end=2, packed=True))
    pushed = [live.push(video[i], {"cup": CUP, "ball": BALL} if i == 0 else None, packed=True) for i in range(3)]
    for theirs, ours, ours_live in zip(expected, packed, pushed, strict=True):
        for result in (ours, ours_live):
            assert isinstance(result.masks.masks, PackedMasks)
            np.testing.assert_array_equal(result.masks.masks, theirs.masks.masks)
            np.testing.assert_array_equal(result.iou_scores, theirs.iou_scores)
            np.testing.assert_array_equal(result.object_scores, theirs.object_scores)
            assert result.object_ids == theirs.object_ids
            assert result.masks.overlay().tobytes() == theirs.masks.overlay().tobytes()


def test_interrupted_tracking_can_be_resumed_packed(sam, video):
    session = sam.video(video)
    session.prompt(0, "cup", **CUP)
    for result in session.track():
        if result.index == 2:
            break
    assert isinstance(next(session.resume_tracking(packed=True)).masks.masks, PackedMasks)


def test_a_failing_prompt_leaves_a_stream_as_it_was(sam, video):
    """A mask may turn out to be too small only when the frame is encoded, and other prompts have been decoded."""
    tiny = np.eye(HEIGHT, WIDTH) * (np.arange(WIDTH) == 9)
    careful, careless = sam.stream(), sam.stream()
    with pytest.raises(PromptError, match="too small"):
        careless.push(video[0], {"cup": CUP, "ball": {"mask": tiny}})
    assert (careless.count, careless.object_ids) == (0, ())
    for live in (careful, careless):
        live.push(video[0], {"cup": CUP})
    for frame in range(1, 4):
        with pytest.raises(PromptError, match="too small"):
            careless.push(video[frame], {"cup": {"points": [(60, 40)]}, "lid": CUP, "ball": {"mask": tiny}})
        assert (careless.count, careless.object_ids) == (frame, ("cup",))
        np.testing.assert_array_equal(careless._image, video[frame - 1])
        expected, result = careful.push(video[frame]), careless.push(video[frame])
        assert result.index == frame
        np.testing.assert_array_equal(result.masks.logits, expected.masks.logits)
    added = [live.push(video[4], {"lid": CUP}) for live in (careful, careless)]
    np.testing.assert_array_equal(*[result.masks.object_ids for result in added])


def test_an_error_of_the_engine_leaves_a_stream_as_it_was(sam, video, monkeypatch):
    live = sam.stream()
    live.push(video[0], {"cup": CUP})
    before = live._tracks
    monkeypatch.setattr(frame_step, "track_objects", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        live.push(video[1], {"ball": BALL})
    assert live._tracks is before
    assert (live.count, live.object_ids) == (1, ("cup",))


def fail(*args, **kwargs):
    raise RuntimeError("out of memory")


def test_the_arguments_of_a_stream_are_checked_when_it_is_opened(sam):
    with pytest.raises(PromptError, match="max_objects is 0"):
        sam.stream(max_objects=0)
    with pytest.raises(PromptError, match="max_prompted is 0"):
        sam.stream(max_prompted=0)
    with pytest.raises(PromptError, match="fps is 0: expected a number, 1e-06 to 1e\\+06"):
        sam.stream(fps=0)
    model = Sam2Model(replace(sam.model.config, has_memory=False)).eval()
    with pytest.raises(CheckpointError, match="saved without its memory"):
        Segmenter(make_engine(model), sam.image_processor).stream()


# One generator at a time


def test_a_second_generator_is_refused_while_the_first_is_tracking(sam, video):
    session = sam.video(video)
    session.prompt(0, "cup", **CUP)
    expected = [r.index for r in session.track()]
    first, unstarted = session.track(), session.track(start=9)
    next(first)
    for start in (session.track, session.resume_tracking, session.everything):
        with pytest.raises(SessionError, match="this session is being tracked already: finish the loop"):
            start()
    with pytest.raises(SessionError, match="is being tracked already"):
        next(unstarted)
    assert [0, *(r.index for r in first)] == expected


@pytest.mark.parametrize("end", ["finished", "closed", "collected", "failed"])
def test_a_generator_that_ended_lets_the_next_one_track(sam, video, end, monkeypatch):
    session = sam.video(video)
    session.prompt(0, "cup", **CUP)
    generator = session.track(end=4)
    next(generator)
    if end == "finished":
        list(generator)
    elif end == "closed":
        generator.close()
    elif end == "collected":
        del generator
        gc.collect()
    else:
        monkeypatch.setattr(frame_step, "track_objects", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            next(generator)
        monkeypatch.undo()
    assert [r.index for r in session.track(start=2, end=3)] == [2, 3]


def test_an_autosaving_generator_refuses_a_second_one_too(sam, video, tmp_path):
    session = sam.video(video)
    session.prompt(0, "cup", **CUP)
    generator = session.track(autosave=1000, autosave_to=tmp_path / "s")
    next(generator)
    with pytest.raises(SessionError, match="is being tracked already"):
        session.track()
    generator.close()
    assert len(list(session.resume_tracking())) == len(video) - 1


def test_a_generator_that_was_never_started_changes_no_plan(sam, video):
    session = sam.video(video)
    session.prompt(0, "cup", **CUP)
    generator = session.track()
    next(generator)
    generator.close()
    session.track(start=15)
    assert [r.index for r in session.resume_tracking()] == list(range(1, len(video)))


def test_objects_may_be_prompted_while_the_video_is_tracked(sam, video):
    session = sam.video(video)
    session.prompt(0, "cup", **CUP)
    for result in session.track(end=5):
        if result.index == 2:
            session.prompt(2, "ball", **BALL)
    assert result.object_ids == ("cup", "ball")
