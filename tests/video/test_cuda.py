"""Videos on the cuda engine, on a processor and on a device without values: masks, operators, nothing read back."""

import contextlib
import copy
import threading

import numpy as np
import pytest
import torch
from engine.cuda_layout import KeptResults, Operators, ReplayedGraphs

from masklet.engine import EagerEngine
from masklet.engine.cuda import CudaEngine
from masklet.errors import SpoolError
from masklet.processing import ImageProcessor
from masklet.segmenter import Segmenter
from masklet.video import result_fetch
from masklet.video.frames import with_following
from masklet.video.object_frame import MAX_DEFERRED
from masklet.video.policy import MAX_POINTERS
from masklet.video.readers import Frame

FRAMES = MAX_POINTERS + 6
PROMPT_SPACING = 3


@pytest.fixture(scope="module")
def present_model(tiny_model):
    """A network that finds every object in every frame."""
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(10.0)
    return model


@pytest.fixture(scope="module")
def frames():
    """A bright rectangle that moves over noise."""
    images = np.random.default_rng(0).integers(0, 100, (FRAMES, 48, 80, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        image[10:30, 10 + number : 40 + number] += 150
    return images


def segmenter(engine):
    return Segmenter(engine, ImageProcessor(engine.config.image_size))


def prompted(engine, frames, objects=1):
    video = segmenter(engine).video(frames)
    for number in range(objects):
        video.prompt(0, number, points=[(15 + PROMPT_SPACING * number, 15)])
    return video


def tracked(engine, frames, objects=1, **options):
    return list(prompted(engine, frames, objects).track(**options))


def assert_same_results(ours, expected):
    assert [result.index for result in ours] == [result.index for result in expected]
    for a, b in zip(ours, expected, strict=True):
        assert a.object_ids == b.object_ids
        assert np.mean(a.masks.masks != b.masks.masks) <= 1e-3  # rounding may decide on a pixel of the border
        # Memories are stored in 8 bits, of which rounding may turn the last; later frames read them.
        for values in ("logits", "iou_scores"):
            ours_of, theirs_of = getattr(a.masks, values), getattr(b.masks, values)
            assert np.abs(ours_of - theirs_of).max() <= 2e-3 * np.abs(theirs_of).max()
        assert np.allclose(a.object_scores, b.object_scores, rtol=1e-3)


@pytest.mark.parametrize("objects", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_slots_and_buckets_give_the_masks_of_eager(present_model, frames, objects):
    graphs = ReplayedGraphs()
    ours = tracked(CudaEngine(present_model, graphs=graphs), frames, objects)
    assert_same_results(ours, tracked(EagerEngine(present_model), frames, objects))
    assert graphs.replays == 2 * FRAMES  # of each frame: its encode, and its step, or the memory of its prompt
    assert 0 < ours[-1].masks.masks.mean() < 1


@pytest.mark.slow
def test_more_objects_than_a_batch_and_an_object_that_comes_later(present_model, frames):
    results = []
    for engine in (EagerEngine(present_model), CudaEngine(present_model, graphs=ReplayedGraphs())):
        video = segmenter(engine).video(frames, max_objects=2)
        for number in range(3):
            video.prompt(0, number, points=[(15 + 3 * number, 15)])
        of_engine = []
        for result in video.track():
            if result.index == 9:
                video.prompt(9, "late", box=(20, 10, 50, 30))
            if result.index == 12:
                video.prompt(12, 1, points=[(30, 20, 0)])  # a correction
            if result.index == 14:
                video.remove(0)
            of_engine.append(result)
        of_engine += video.track(start=12, direction="backward")
        results.append(of_engine)
    assert_same_results(results[1], results[0])


@pytest.mark.slow
def test_streams_give_the_masks_of_eager(present_model, frames):
    results = []
    for engine in (EagerEngine(present_model), CudaEngine(present_model, graphs=ReplayedGraphs())):
        stream = segmenter(engine).stream()
        prompts = {number: {"points": [(15 + 3 * number, 15)]} for number in range(2)}
        results.append([stream.push(frame, prompts if not n else None) for n, frame in enumerate(frames)])
    assert_same_results(results[1], results[0])


@pytest.mark.slow
def test_a_saved_session_holds_what_was_still_being_packed(present_model, frames, tmp_path):
    sam = segmenter(CudaEngine(present_model))
    video = prompted(sam.engine, frames, 2)
    results = list(video.track(end=7))
    video.save(tmp_path / "session.masklet")
    resumed = sam.resume(tmp_path / "session.masklet", frames)
    kept = {number: track.bank for number, track in resumed._tracks.objects.items()}
    for result in results:
        for row, number in enumerate(result.object_ids):
            assert np.array_equal(kept[number][result.index].logits.numpy(), result.masks.logits[row])


def test_few_results_wait_to_be_packed(present_model, frames, monkeypatch):
    video = prompted(CudaEngine(present_model), frames)
    spool = video._tracks.objects[0].bank.spool
    waiting = []
    for result in video.track(end=9):
        waiting.append(len(spool._deferred))
        assert result.index in spool
    assert max(waiting) <= MAX_DEFERRED
    assert len(spool) == 10
    assert sorted(spool) == list(range(10))
    del spool[3]
    assert 3 not in spool
    with pytest.raises(KeyError):
        del spool[3]


def test_a_full_disk_is_reported_and_the_result_is_kept(present_model, frames, monkeypatch):
    video = prompted(CudaEngine(present_model), frames)
    tracks, spool = video._tracks, video._tracks.objects[0].bank.spool

    def full(data):
        raise SpoolError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(tracks.spool, "put", full)
        with pytest.raises(SpoolError, match="the disk is full"):
            list(video.track())
        kept = list(spool._deferred)
    assert kept
    assert all(len(spool.read(frame)) > 0 for frame in kept)


# Operators


def steady_frame(engine, frames, objects, operators):
    """The results of a video, with the operators counted in a frame when all memory is filled."""
    video = prompted(engine, frames, objects).track()
    for _ in range(FRAMES - 3):
        next(video)
    with operators:
        next(video)
    return operators


RELEASED_BLOCKS = {"blocks_per_stage": (1, 2, 7, 2), "global_attention_blocks": (5, 7, 9)}
"""Of SAM 2.1 tiny."""


@pytest.fixture(scope="module")
def tiny_depth_model(tiny_config):
    """Narrow, with as many layers as SAM 2.1 tiny."""
    from dataclasses import replace

    from engine.conftest import random_model

    encoder = replace(tiny_config.image_encoder, **RELEASED_BLOCKS, window_size_per_stage=(8, 4, 14, 7))
    attention = replace(tiny_config.memory_attention, num_layers=4)
    return random_model(replace(tiny_config, image_encoder=encoder, memory_attention=attention))


@pytest.mark.parametrize("objects", [1, pytest.param(16, marks=pytest.mark.slow)])
def test_a_frame_is_two_graphs_and_few_launches_beside_them(present_model, frames, objects):
    engine = CudaEngine(present_model, graphs=(graphs := KeptResults()))
    video = prompted(engine, frames, objects).track()
    for _ in range(FRAMES - 3):
        next(video)
    replays = graphs.replays
    with Operators() as operators:
        next(video)
    assert graphs.replays - replays == 2
    assert operators.count <= 28, operators.launched


@pytest.mark.slow
def test_a_frame_takes_few_operators_however_many_objects(tiny_depth_model, frames):
    frames = frames[:, :, :64].repeat(2, 1)[:, :64]  # on a GPU, resizing is two kernels
    one, sixteen = (
        steady_frame(CudaEngine(tiny_depth_model), frames, objects, Operators()).count for objects in (1, 16)
    )
    assert one <= 415
    assert sixteen <= 1.01 * one
    eager = steady_frame(EagerEngine(tiny_depth_model), frames, 1, Operators()).count
    assert one < 0.7 * eager


def test_a_steady_frame_reads_nothing_back(present_model, frames):
    assert not steady_frame(CudaEngine(present_model), frames, 2, Operators()).read_back


# A device without values


@contextlib.contextmanager
def results_that_never_arrive(monkeypatch, fetches):
    """The one copy of a frame to the host, which is counted; it brings zeros."""

    def start_copy(values):
        fetches.append(values.shape)
        return lambda: torch.zeros(values.shape, dtype=values.dtype, device="cpu")

    with monkeypatch.context() as patched:
        patched.setattr(result_fetch, "start_copy", start_copy)
        yield


def stream_on(engine, frames, monkeypatch, operators=None):
    """Push frames through a stream, and return the number of fetches of the last."""
    fetches = []
    with results_that_never_arrive(monkeypatch, fetches):
        stream = segmenter(engine).stream()
        with operators or contextlib.nullcontext():
            stream.push(frames[0], {number: {"points": [(15, 15)]} for number in range(3)})
        for frame in frames[1:-1]:
            stream.push(frame)
        fetches.clear()
        if operators is not None:
            operators.read_back.clear()  # of prompts
        with operators or contextlib.nullcontext():
            stream.push(frames[-1])
    return len(fetches)


@pytest.mark.slow
def test_all_of_tracking_runs_on_the_meta_device_and_fetches_once(present_model, frames, monkeypatch):
    # Values on this device cannot be read at all.
    engine, operators = CudaEngine(copy.deepcopy(present_model).to("meta"), torch.bfloat16), Operators("meta")
    assert stream_on(engine, frames, monkeypatch, operators) == 1
    assert not operators.read_back
    assert not operators.mixed


def test_meta_tensors_cannot_be_read():
    for read in (torch.Tensor.item, torch.Tensor.cpu, torch.Tensor.nonzero, torch.Tensor.tolist):
        with pytest.raises((NotImplementedError, RuntimeError)):
            read(torch.ones(1, device="meta"))
    with Operators("meta") as operators:  # as a device refuses it
        torch.matmul(torch.ones(2, 2, device="meta"), torch.ones(2, 2))
    assert operators.mixed == {"mm": 1}


# Reading ahead


def frame_of(index):
    return Frame(index, 0.0, np.zeros((1, 1, 3), np.uint8))


def test_the_next_frame_is_known_and_an_error_comes_in_its_place():
    def damaged():
        yield frame_of(0)
        yield frame_of(1)
        raise OSError("the disk is gone")

    pairs = with_following(damaged())
    assert [None if frame is None else frame.index for frame in next(pairs)] == [0, 1]
    assert next(pairs)[1] is None
    with pytest.raises(OSError, match="the disk is gone"):
        next(pairs)


def test_the_thread_that_reads_puts_frames_into_pinned_memory(present_model, frames, monkeypatch):
    threads = []
    stage = CudaEngine.stage

    def noted(engine, values):
        if values.ndim == 3:
            threads.append(threading.current_thread().name)
        return stage(engine, values)

    monkeypatch.setattr(CudaEngine, "stage", noted)
    video = prompted(CudaEngine(present_model), frames)
    threads.clear()
    list(video.track(start=1, end=5))
    assert threads
    assert all(name.startswith("masklet-video") for name in threads)


def test_frames_may_be_read_only(present_model, frames):
    fixed = frames[:2, :, ::-1]
    fixed.flags.writeable = False
    ours, expected = (tracked(engine(present_model), fixed) for engine in (CudaEngine, EagerEngine))
    assert_same_results(ours, expected)
