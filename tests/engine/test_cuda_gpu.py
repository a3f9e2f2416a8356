"""The cuda engine on a CUDA device: graphs, precision, memory, and that nothing is waited for."""

import logging

import numpy as np
import pytest
import torch
from engine.conftest import assert_close, random_memory

from masklet.engine import CudaEngine, EagerEngine, make_engine
from masklet.engine.cuda import fused
from masklet.engine.cuda.fused import add_norm, draw_masks, layer_norm, resize_axis, rotate
from masklet.engine.cuda.graphs import NotCaptured
from masklet.engine.cuda.products import Norm
from masklet.engine.resizing import FrameResizer, resize_frame
from masklet.model.prompt_encoder import Prompts
from masklet.processing import ImageProcessor
from masklet.segmenter import Segmenter

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def no_kernel_fails():
    kernels = fused.kernels
    yield
    assert fused.kernels is kernels


@pytest.fixture(scope="module")
def model(models):
    return models["wide"].to("cuda")


@pytest.fixture(scope="module")
def features(model):
    pixels = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return EagerEngine(model).encode(pixels)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16])
def engines(model, request):
    return EagerEngine(model), CudaEngine(model, request.param), 1e-4 if request.param == torch.float32 else 0.03


def on_gpu(memory):
    return type(memory)(*(None if t is None else t.cuda() for t in vars(memory).values()))


def test_auto_is_the_cuda_engine_in_mixed_precision(model):
    assert make_engine(model).products is torch.float32
    engine = make_engine(model, mixed=True)
    assert type(engine) is CudaEngine
    assert engine.products is (torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float32)


def test_encode_agrees(engines):
    eager, cuda, tolerance = engines
    pixels = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = eager.encode(pixels)
        for _ in range(3):
            for ours, theirs in zip(cuda.encode(pixels), expected, strict=True):
                assert_close(ours, theirs, tolerance)


@pytest.mark.parametrize("objects", [1, 3, 16])
def test_tracking_agrees(engines, features, objects):
    eager, cuda, tolerance = engines
    memory = on_gpu(random_memory(eager.config, features.map_hw, objects=objects, maps=7, pointers=16))
    is_empty = torch.rand(objects, 23, device="cuda") > 0.5
    is_empty[:, 0] = False
    with_gaps = type(memory)(memory.maps, memory.map_slots, memory.pointers, memory.pointer_distances, is_empty)
    conditioned = torch.randn(objects, *features.stride16.shape[1:], device="cuda")
    scores = torch.randn(objects, 1, device="cuda")
    with torch.inference_mode():
        for _ in range(2):
            assert_close(cuda.read_memory(features, memory), eager.read_memory(features, memory), tolerance)
            assert_close(cuda.read_memory(features, with_gaps), eager.read_memory(features, with_gaps), tolerance)
            ours, theirs = (e.decode(features, multimask=True, conditioned=conditioned) for e in (cuda, eager))
            assert_close(ours.logits, theirs.logits, tolerance)
            assert_close(ours.object_pointers, theirs.object_pointers, tolerance)
            tracked, maps = cuda.track(features, memory)
            parts, expected_maps = super(CudaEngine, cuda).track(features, memory)  # function by function
            assert_close(tracked.logits, parts.logits, tolerance)
            assert_close(tracked.pointers, parts.pointers, tolerance)
            assert_close(maps.float(), expected_maps.float(), max(tolerance, 0.01))  # stored in bfloat16
            ours, theirs = (
                e.write_memory(features, ours.logits[:, 0, 0], scores, binarize=False) for e in (cuda, cuda)
            )
            assert ours.equal(theirs)


@pytest.mark.parametrize("objects", [1, 5, 64])
def test_clicks_agree(engines, features, objects):
    eager, cuda, tolerance = engines
    points = 256 * torch.rand(1, objects, 1, 2, device="cuda")
    prompts = Prompts(points, torch.ones(1, objects, 1, dtype=torch.int64, device="cuda"))
    with torch.inference_mode():
        expected = eager.decode(features, prompts, multimask=True)
        for _ in range(3):
            assert_close(cuda.decode(features, prompts, multimask=True).logits, expected.logits, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("maps", "shared", "dim", "gelu"), [(3, 1, 256, False), (2, 2, 64, True), (1, 1, 48, True)])
def test_a_fused_norm_of_a_sum_agrees(dtype, maps, shared, dim, gelu):
    x, other = torch.randn(maps, 333, dim, dtype=dtype), torch.randn(shared, 333, dim, dtype=dtype)
    norm = Norm(torch.rand(dim), torch.randn(dim), 1e-6)
    expected = add_norm(x, other, norm, gelu=gelu)
    on_device = add_norm(x.cuda(), other.cuda(), Norm(norm.weight.cuda(), norm.bias.cuda(), 1e-6), gelu=gelu)
    assert_close(on_device.cpu().float(), expected.float(), 1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [4, 48, 256])
@pytest.mark.parametrize("gelu", [False, True])
def test_a_fused_norm_agrees(dtype, dim, gelu):
    x, norm = torch.randn(3, 333, dim), Norm(torch.rand(dim), torch.randn(dim), 1e-6)
    expected = layer_norm(x, norm, dtype, gelu=gelu)
    on_device = layer_norm(x.cuda(), Norm(norm.weight.cuda(), norm.bias.cuda(), 1e-6), dtype, gelu=gelu)
    assert on_device.dtype == dtype
    assert_close(on_device.cpu().float(), expected.float(), 1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 128])
def test_fused_rotations_agree(dtype, width):
    y, cos, sin = torch.randn(3, 333, 5 * 64).to(dtype), torch.randn(333, 64), torch.randn(333, 64)
    expected = rotate(y, cos, sin, width)
    on_device = rotate(y.cuda(), cos.cuda(), sin.cuda(), width)
    assert_close(on_device.cpu().float(), expected.float(), 1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize(("frame_hw", "input_hw"), [((480, 854), (1024, 1024)), ((1080, 1920), (256, 512))])
def test_resized_frames_have_the_same_pixels(frame_hw, input_hw):
    frame = torch.randint(0, 256, (*frame_hw, 3), dtype=torch.uint8)
    expected = resize_frame(frame, input_hw)
    resizer = FrameResizer.make(frame_hw, input_hw, torch.device("cuda"))
    assert resizer(frame.cuda(), resize_axis).cpu().equal(expected)
    assert resize_frame(frame.cuda(), input_hw).cpu().equal(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("objects", "shared", "channels"), [(3, 1, 32), (2, 2, 32), (1, 1, 12)])
def test_fused_masks_agree(dtype, objects, shared, channels):
    x, other = (torch.randn(n, 7 * 5, 2, 2, 2, 2, channels, dtype=dtype) for n in (objects, shared))
    weights = torch.randn(objects, 4, channels, dtype=dtype)
    expected = draw_masks(x.float(), other.float(), weights.float(), 5)
    found = draw_masks(x.cuda(), other.cuda(), weights.cuda(), 5)
    assert found.shape == (objects, 4, 28, 20)
    assert_close(found.cpu(), expected, 1e-5)


def test_functions_are_captured(model, features, caplog):
    cuda = CudaEngine(model)
    with caplog.at_level(logging.WARNING, logger="masklet"), torch.inference_mode():
        cuda.encode(torch.zeros(1, 3, 256, 256, device="cuda"))
        cuda.read_memory(features, on_gpu(random_memory(model.config, features.map_hw, objects=2)))
    assert not caplog.records
    assert len(cuda._runner) == 2


def test_what_cannot_be_captured_runs_plainly(model, features, caplog):
    cuda = CudaEngine(model, torch.float32)

    def refuse(needed):
        raise NotCaptured("no memory")

    cuda._runner.backend._check_memory = refuse
    memory = on_gpu(random_memory(model.config, features.map_hw, objects=2))
    with caplog.at_level(logging.WARNING, logger="masklet"), torch.inference_mode():
        assert_close(cuda.read_memory(features, memory), EagerEngine(model).read_memory(features, memory), 1e-4)
    assert "runs without a CUDA graph: no memory" in caplog.text


def moving_rectangle(count):
    images = np.random.default_rng(0).integers(0, 100, (count, 96, 160, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        image[20:60, 20 + number : 80 + number] += 150
    return images


def test_videos_agree_with_eager(model):
    frames, tracks = moving_rectangle(24), []
    for engine in (EagerEngine(model), CudaEngine(model, torch.float32)):
        video = Segmenter(engine, ImageProcessor(256)).video(frames)
        for number in range(3):
            video.prompt(0, number, box=(20, 20, 80 - 5 * number, 60))
        tracks.append(np.stack([result.masks.masks for result in video.track()]))
    assert np.mean(tracks[0] != tracks[1]) <= 1e-2


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_steady_frame_waits_for_nothing_but_its_results(model, monkeypatch):
    stream = Segmenter(CudaEngine(model), ImageProcessor(256)).stream()
    frames = moving_rectangle(26)
    stream.push(frames[0], {number: {"box": (20, 20, 80, 60)} for number in range(3)})
    for frame in frames[1:24]:
        stream.push(frame)
    torch.cuda.set_sync_debug_mode("error")  # waiting for an event, as the fetch does, is allowed
    try:
        stream.push(frames[24])
    finally:
        torch.cuda.set_sync_debug_mode("default")
