"""What a session holds in memory has a bound: results are simulated, or the network is small."""

import gc
import math
import sys
from types import FunctionType, ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from video.test_tracking import BALL, CUP, HEIGHT, WIDTH, moving_square

from masklet.masks import logits
from masklet.model.mask_decoder import DecodedMasks
from masklet.model.neck import Features
from masklet.video.frame_column import FrameColumn
from masklet.video.frames import open_video
from masklet.video.object_frame import ObjectFrame, ResultPacking
from masklet.video.policies import POLICIES, make_policy
from masklet.video.policy import PaperPolicy
from masklet.video.session import VideoSession
from masklet.video.tracks import Tracks

OBJECTS, FRAMES = 16, 20_000
LIMIT_BYTES = 50 * 10**6


def reachable(root):
    """Everything that an object holds, but for classes, modules and functions."""
    found, waiting = {}, [root]
    while waiting:
        one = waiting.pop()
        if id(one) not in found and not isinstance(one, type | ModuleType | FunctionType):
            found[id(one)] = one
            waiting += gc.get_referents(one)
    return found.values()


def bytes_of(root):
    """The size of everything that an object holds, tensors included."""
    return sum(
        one.untyped_storage().nbytes() if isinstance(one, torch.Tensor) else sys.getsizeof(one)
        for one in reachable(root)
    )


def tensor_bytes(root):
    """The size of the tensors that an object holds."""
    tensors = [one for one in reachable(root) if isinstance(one, torch.Tensor)]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


@pytest.mark.slow
def test_sixteen_objects_in_twenty_thousand_frames_take_less_than_fifty_megabytes(monkeypatch):
    config = SimpleNamespace(has_memory=True, hidden_size=256, perceiver=None)
    engine = SimpleNamespace(
        config=config,
        dtype=torch.float32,
        device=torch.device("cpu"),
        pads_memory=False,
        batches_memory=False,
        is_asynchronous=False,
    )
    processor = SimpleNamespace(input_hw=(16, 16))
    monkeypatch.setattr(ResultPacking, "pack", lambda self, result: bytes(200))
    result = ObjectFrame(torch.zeros(4, 4), torch.tensor(0.5), torch.tensor(1.0), torch.zeros(256))
    video = open_video([np.zeros((16, 16, 3), np.uint8)])
    session = VideoSession(engine, processor, video, PaperPolicy(), max_objects=OBJECTS)
    tracks = [session._tracks.new_track() for _ in range(OBJECTS)]
    for object_id, track in enumerate(tracks):
        session._tracks.add(object_id, track)
    for frame in range(FRAMES):
        for track in tracks:
            track.bank.put(frame, result, torch.zeros(1), is_prompted=False)
            track.bank.keep_maps({frame})
            track.tracked_steps[frame] = 1
        session._times[frame] = frame / 25
    held = bytes_of((tracks, session._tracks.spool, session._times))
    assert len(tracks[3].bank.frames) == FRAMES
    assert held < LIMIT_BYTES


class CheapEngine:
    """Gives made-up results at once: an object that is seen in two of three frames."""

    config = SimpleNamespace(
        has_memory=True,
        hidden_size=8,
        memory_encoder=SimpleNamespace(output_channels=4),
        num_maskmem=7,
        perceiver=None,
        is_edgetam=False,
        tokens_per_memory=math.prod,
    )
    dtype, device, pads_memory = torch.float32, torch.device("cpu"), False
    batches_memory, is_asynchronous = False, False

    def __init__(self):
        self.calls = 0

    def read_memory(self, features, memory):
        return torch.zeros(len(memory.maps), 8, 1, 1)

    def decode(self, features, prompts=None, *, multimask, conditioned=None):
        self.calls += 1
        rows, count = 1 if conditioned is None else len(conditioned), 3 if multimask else 1
        score = torch.full((rows, 1, 1), -3.0 if self.calls % 3 == 0 else 3.0)
        ious = torch.tensor([0.9, 0.7, 0.5])[:count].expand(rows, 1, count) - 0.01 * (self.calls % 7)
        logits = torch.ones(rows, 1, count, 4, 4)
        return DecodedMasks(logits, ious, score, torch.zeros(rows, 1, count, 8), torch.zeros(rows, 1, count, 8))

    def write_memory(self, features, logits, object_scores, *, binarize):
        return torch.zeros(len(logits), 1, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_memory_of_a_stream_is_the_same_after_twenty_thousand_frames(name):
    policy = make_policy(name, num_maskmem=7, max_prompted=8)
    engine = CheapEngine()
    sizes = {"size_hw": (16, 16), "input_hw": (16, 16)}
    tracks = Tracks(engine, policy, max_objects=16, spool=None, can_rewind=False, **sizes)
    features = Features(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 2, 2), torch.zeros(1, 8, 1, 1))
    prompt = tracks.read(points=[(3, 3), (5, 5)])
    held = {}
    with torch.inference_mode():
        for frame in range(FRAMES):
            if frame % 500 == 0:
                tracks.prompt("cup", frame, lambda _: features, prompt)
            tracks.advance(frame, lambda _: features, 1)
            tracks.forget_before(frame)
            if frame + 1 in (5_000, FRAMES):
                held[frame + 1] = bytes_of(tracks.objects)
    # Numbers above 256 are objects of their own in Python, and dicts grow in steps.
    assert abs(held[FRAMES] - held[5_000]) < 500 + 0.01 * held[5_000]
    assert held[FRAMES] < 3_000_000


def test_corrected_frames_hold_no_maps_until_tracking_resumes(sam):
    session = sam.video(moving_square(20))
    session.prompt(0, "cup", **CUP)
    list(session.track())
    track = session._tracks.objects["cup"]
    before = tensor_bytes(track) - track.bank.tensor_bytes()
    for frame in range(3, 15):
        session.prompt(frame, "cup", points=[(40, 30, 0)])
    map_bytes = 4 * np.prod(session._features_of(0).stride16.shape)
    assert tensor_bytes(track) - track.bank.tensor_bytes() - before < map_bytes
    assert len(track.conditioned) == 12
    list(session.track(start=19))
    assert not track.conditioned


def test_masks_of_prompts_are_not_held(sam):
    session = sam.video(moving_square(2))
    for object_id in range(3):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[10:30, 10 + 5 * object_id : 40] = True
        session.prompt(0, object_id, mask=mask)
    for track in session._tracks.objects.values():
        assert tensor_bytes(track) == track.bank.tensor_bytes()


def test_the_spool_frees_what_corrections_and_removed_objects_held(sam):
    session = sam.video(moving_square(20))
    spool = session._tracks.spool
    session.prompt(0, "cup", **CUP)
    list(session.track())
    for frame in range(5, 10):
        session.prompt(frame, "cup", points=[(40, 30, 0)])
    session.reset()
    assert sum(spool._free.values()) == spool._end
    assert len(spool._free) == len(spool._free_starts) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_masks_are_upscaled_in_chunks_of_bounded_size(sam, monkeypatch, packed):
    session = sam.video(moving_square(2))
    for object_id in range(10):
        session.prompt(0, object_id, **(CUP if object_id % 2 else BALL))
    (expected,) = session.track(end=0)
    sizes, upscale = [], logits.upscale_logits

    def counting(low_res, size_hw):
        sizes.append(len(low_res) * size_hw[0] * size_hw[1])
        return upscale(low_res, size_hw)

    monkeypatch.setattr(logits, "upscale_logits", counting)
    monkeypatch.setattr(logits, "CHUNK_PIXELS", 3 * HEIGHT * WIDTH + 5)
    (result,) = session.track(end=0, packed=packed)
    assert [size // (HEIGHT * WIDTH) for size in sizes] == [3, 3, 3, 1]
    np.testing.assert_array_equal(result.masks.masks, expected.masks.masks)


def test_a_mask_larger_than_a_chunk_is_upscaled_alone(sam, monkeypatch):
    session = sam.video(moving_square(2))
    session.prompt(0, "cup", **CUP)
    monkeypatch.setattr(logits, "CHUNK_PIXELS", 7)
    assert len(session.prompt(0, "ball", **BALL).masks) == 1


@pytest.mark.parametrize("order", [range(50), range(49, -1, -1), np.random.default_rng(0).permutation(50).tolist()])
def test_a_frame_column_is_a_sorted_mapping(order):
    column = FrameColumn("q")
    for frame in order:
        column[frame] = 3 * frame
    assert list(column.items()) == [(frame, 3 * frame) for frame in range(50)]
    column[7] = -1
    del column[8]
    assert (column[7], column.get(8), 8 in column, len(column)) == (-1, None, False, 49)
    copied = column.copy()
    del copied[7]
    assert (7 in column, 7 in copied) == (True, False)
    with pytest.raises(KeyError):
        column[50]
    with pytest.raises(KeyError):
        del column[-1]
