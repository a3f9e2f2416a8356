"""EdgeTAM through masklet's own verbs. Its results are compared with transformers' in tests/parity/test_edgetam.py."""

import copy

import numpy as np
import pytest
import torch
from compat.transformers_video import FRAMES, moving_rectangles_of, random_network
from engine.cuda_layout import ReplayedGraphs

import masklet
from masklet.engine import CudaEngine, make_engine
from masklet.errors import ConfigError
from masklet.processing import ImageProcessor
from masklet.segmenter import Segmenter

PROMPTS = {1: {"points": [(40, 50), (50, 55)]}, 2: {"box": (95, 76, 144, 112)}}


@pytest.fixture(scope="module")
def sam():
    network = random_network(version="EdgeTAM")
    return Segmenter(make_engine(network), ImageProcessor(network.config.image_size))


@pytest.fixture(scope="module")
def video():
    return moving_rectangles_of(FRAMES)


def session_of(sam, video, **options):
    session = sam.video(video, **options)
    for name, prompt in PROMPTS.items():
        session.prompt(0, name, **prompt)
    return session


def assert_same_results(ours, others):
    ours, others = list(ours), list(others)
    assert [r.index for r in ours] == [r.index for r in others]
    assert ours
    for one, other in zip(ours, others, strict=True):
        np.testing.assert_array_equal(one.masks.logits, other.masks.logits)


def test_a_memory_is_a_few_tokens(sam, video):
    session = session_of(sam, video)
    list(session.track())
    maps = session._tracks.objects[1].bank.maps
    assert {tuple(tokens.shape) for tokens in maps.values()} == {(24 + 16, 64)}


@pytest.mark.slow
def test_a_saved_session_goes_on_with_the_same_results(sam, video, tmp_path):
    expected = list(session_of(sam, video).track())
    session = session_of(sam, video)
    track = session.track()
    for _ in range(3):
        next(track)
    track.close()
    session.save(tmp_path / "session")
    assert_same_results(sam.resume(tmp_path / "session", video).resume_tracking(), expected[3:])


@pytest.mark.slow
def test_tracking_again_with_maps_made_anew_gives_the_same_results(sam, video):
    session = session_of(sam, video)
    first = list(session.track())
    for track in session._tracks.objects.values():
        track.bank.maps.clear()
    assert_same_results(session.track(start=3), first[3:])


@pytest.mark.slow
def test_a_stream_is_tracked_in_constant_memory(sam, video):
    stream, sizes = sam.stream(), []
    frames = (video + video[::-1]) * 4
    for index, frame in enumerate(frames):
        stream.push(frame, PROMPTS if index == 0 else None)
        sizes.append(sum(track.bank.tensor_bytes() for track in stream._tracks.objects.values()))
    assert sizes[20] == sizes[-1]


@pytest.mark.slow
def test_padded_memory_gives_the_same_masks(sam, video, monkeypatch):
    """As on an accelerator, where memories are padded to a few shapes."""
    expected = list(session_of(sam, video).track())
    monkeypatch.setattr(type(sam.engine), "pads_memory", True)
    for one, other in zip(session_of(sam, video).track(), expected, strict=True):
        np.testing.assert_allclose(one.masks.logits, other.masks.logits, atol=1e-3)


@pytest.mark.slow
def test_automatic_masks_are_found(sam, video):
    masks = sam.everything(video[0], points_per_side=4, iou_threshold=0, stability_threshold=0)
    assert len(masks) > 0
    assert masks.masks.shape[1:] == video[0].shape[:2]


def test_an_image_of_any_size_is_segmented_but_a_video_needs_whole_windows(sam, video):
    image = sam.image(video[0], resolution=(96, 160))
    assert image.predict(points=[(40, 50)]).masks.shape == (1, 120, 160)
    with pytest.raises(ConfigError, match="96 x 160 pixels: expected sides that are multiples of 64 for videos"):
        sam.video(video, resolution=(96, 160))
    with pytest.raises(ConfigError, match="multiples of 64"):
        sam.stream(resolution=96)
    assert_same_results(session_of(sam, video, resolution=128).track(), session_of(sam, video).track())


@pytest.mark.slow
def test_the_layout_of_the_cuda_engine_gives_the_same_masks(sam, video):
    """Slots, buckets and replays, on a processor."""
    graphs = ReplayedGraphs()
    cuda = Segmenter(CudaEngine(sam.model, graphs=graphs), sam.image_processor)
    frames = (video + video[::-1]) * 2  # until all slots are filled
    for one, other in zip(session_of(cuda, frames).track(), session_of(sam, frames).track(), strict=True):
        scale = np.abs(other.masks.logits).max()
        np.testing.assert_allclose(one.masks.logits, other.masks.logits, atol=2e-3 * scale)
    assert graphs.replays >= 2 * (len(frames) - 1)  # the encoder, and a step of tracking


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["auto", "cuda"])
def test_masks_on_a_gpu_are_near(sam, video, engine):
    on_gpu = Segmenter(make_engine(copy.deepcopy(sam.model).to("cuda"), engine), sam.image_processor)
    for one, other in zip(session_of(on_gpu, video).track(), session_of(sam, video).track(), strict=True):
        assert (one.masks.masks == other.masks.masks).mean() > 0.98


@pytest.mark.slow
def test_bfloat16_masks_are_near(sam, video, tmp_path):
    sam.model.save_pretrained(tmp_path)
    narrow = masklet.load(tmp_path, dtype="bfloat16")
    assert narrow.model.dtype == torch.bfloat16
    agreement = [
        (one.masks.masks == other.masks.masks).mean()
        for one, other in zip(session_of(narrow, video).track(), session_of(sam, video).track(), strict=True)
    ]
    assert agreement[0] > 0.95
