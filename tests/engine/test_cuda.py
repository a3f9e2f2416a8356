"""The cuda engine against the eager one, on a processor: plainly, and with fixed places and buckets."""

import copy
import logging
import pickle
from types import SimpleNamespace

import pytest
import torch
from engine.conftest import assert_close, random_memory
from engine.cuda_layout import NoGraphs, ReplayedGraphs
from engine.test_engines import (
    LORA_TARGETS,
    assert_decoded_alike,
    everything_an_engine_computes,
    kinds_of_prompts,
    lora,
    prompts_for,
)

from masklet.checkpoints.preprocessor import PreprocessorConfig
from masklet.engine import EagerEngine, make_engine
from masklet.engine.cuda import CudaEngine
from masklet.engine.cuda.constants import MAX_SIZES, BySize
from masklet.engine.cuda.graphs import MAX_GRAPHS, GraphRunner, bucket_of
from masklet.errors import ConfigError
from masklet.model.neck import Features

KINDS = [
    pytest.param(kind, marks=[pytest.mark.slow] if kind.startswith("many") else [])
    for kind in kinds_of_prompts((64, 32))
]


@pytest.fixture(scope="module", params=[pytest.param("plain", marks=pytest.mark.slow), "replayed"])
def engines(models, request):
    """(eager, cuda) of one network."""
    graphs = ReplayedGraphs() if request.param == "replayed" else None
    return EagerEngine(models["wide"]), CudaEngine(models["wide"], graphs=graphs)


@pytest.fixture(scope="module")
def features(engines):
    """Of two images that are not square."""
    pixels = torch.randn(2, 3, 256, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return engines[0].encode(pixels)


@pytest.fixture(scope="module")
def one(features):
    """Of one image."""
    return Features(*(level[:1] for level in features))


def test_encode_agrees(engines):
    eager, cuda = engines
    for size_hw in ((256, 256), (128, 256), (256, 384), (256, 256)):
        pixels = torch.randn(2, 3, *size_hw, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            for ours, expected in zip(cuda.encode(pixels), eager.encode(pixels), strict=True):
                assert_close(ours, expected)


def test_a_frame_is_resized_and_normalised_as_eager_does_it(engines):
    eager, cuda = engines
    frame = torch.randint(0, 256, (90, 200, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    normalisation = PreprocessorConfig((128, 256), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 1 / 128)
    with torch.inference_mode():
        expected = eager.encode_frame(frame, normalisation)
        for ours, theirs in zip(cuda.encode_frame(frame, normalisation), expected, strict=True):
            assert_close(ours, theirs)


@pytest.mark.parametrize(
    "multimask", [pytest.param(True, marks=pytest.mark.slow), False, pytest.param(None, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_decode_agrees(engines, features, one, kind, multimask):
    eager, cuda = engines
    prompts = kinds_of_prompts((256, 128))[kind]
    with torch.inference_mode():
        expected = eager.decode(features, prompts, multimask=multimask)
        assert_decoded_alike(cuda.decode(features, prompts, multimask=multimask), expected)
        first = (
            None
            if prompts is None
            else type(prompts)(*(None if t is None else t[:1] for t in prompts._tensors()), prompts.has_padding)
        )
        for _ in range(3):  # the first time plainly, then captured, then replayed
            ours = cuda.decode(one, first, multimask=multimask)
            assert_decoded_alike(ours, eager.decode(one, first, multimask=multimask))


@pytest.mark.parametrize("objects", [1, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (16, 17))])
def test_tracking_agrees(engines, one, objects):
    eager, cuda = engines
    generator = torch.Generator().manual_seed(objects)
    conditioned = torch.randn(objects, *one.stride16.shape[1:], generator=generator)
    h, w = one.map_hw
    logits = 5 * torch.randn(objects, 4 * h, 4 * w, generator=generator)
    scores = torch.randn(objects, 1, generator=generator)
    memory = random_memory(eager.config, one.map_hw, objects=objects, maps=3, pointers=4)
    with torch.inference_mode():
        assert_close(cuda.read_memory(one, memory), eager.read_memory(one, memory))
        ours = cuda.decode(one, multimask=True, conditioned=conditioned)
        assert_decoded_alike(ours, eager.decode(one, multimask=True, conditioned=conditioned))
        tracked, maps = cuda.track(one, memory)
        expected, expected_maps = eager.track(one, memory)
        for field, theirs in zip(tracked, expected, strict=True):
            assert_close(field, theirs)
        assert_close(maps, expected_maps, 0.01)  # bfloat16
        for binarize in (True, False):
            written = cuda.write_memory(one, logits, scores, binarize=binarize)
            assert_close(written, eager.write_memory(one, logits, scores, binarize=binarize))


def test_empty_slots_are_ignored(engines, one):
    eager, cuda = engines
    is_empty = torch.rand(3, 10, generator=torch.Generator().manual_seed(1)) > 0.5
    is_empty[:, 0] = False
    memory = random_memory(eager.config, one.map_hw, objects=3, maps=4, pointers=6, is_empty=is_empty)
    with torch.inference_mode():
        assert_close(cuda.read_memory(one, memory), eager.read_memory(one, memory))


def test_results_survive_the_next_replay(models, one):
    cuda = CudaEngine(models["wide"], graphs=ReplayedGraphs())
    first, second = (random_memory(cuda.config, one.map_hw, objects=n, maps=2, pointers=1) for n in (4, 3))
    with torch.inference_mode():
        held = cuda.read_memory(one, first)
        kept = held.clone()
        cuda.read_memory(one, second)
    assert held.equal(kept)


def test_one_capture_serves_a_bucket(models, one):
    graphs = ReplayedGraphs()
    cuda = CudaEngine(models["wide"], graphs=graphs)
    with torch.inference_mode():
        for objects in (3, 4, 3, 1, 2, 16, 9):
            cuda.read_memory(one, random_memory(cuda.config, one.map_hw, objects=objects, maps=2, pointers=1))
    assert graphs.captures == len({bucket_of(n) for n in (3, 4, 1, 2, 16, 9)}) == 4
    assert graphs.replays == 7


def test_without_memory_for_a_graph_functions_run_plainly_and_say_so_once(models, one, caplog):
    graphs = NoGraphs()
    eager, cuda = EagerEngine(models["wide"]), CudaEngine(models["wide"], graphs=graphs)
    memory = random_memory(cuda.config, one.map_hw, objects=3, maps=2, pointers=1)
    with torch.inference_mode(), caplog.at_level(logging.WARNING, logger="masklet"):
        for _ in range(2):
            assert_close(cuda.read_memory(one, memory), eager.read_memory(one, memory))
    assert [record.getMessage() for record in caplog.records] == [
        "CudaMemoryAttention for 4 objects runs without a CUDA graph: it needs 3 MB, and 2 of 80 MB are free"
    ]
    assert graphs.captures == 1


def test_graphs_and_constants_have_a_maximum():
    runner = GraphRunner(ReplayedGraphs())
    for length in range(1, MAX_GRAPHS + 10):
        (doubled,) = runner.run(lambda x: (2 * x,), (), [torch.ones(1, length)])
        assert doubled.tolist() == [[2.0] * length]
    assert len(runner) == MAX_GRAPHS
    by_size = BySize()
    made = [by_size.get(size, lambda size=size: [size]) for size in range(MAX_SIZES + 3)]
    assert by_size.get(MAX_SIZES + 2, list) is made[-1]
    assert by_size.get(0, lambda: ["again"]) == ["again"]


def test_shapes_that_may_not_recur_are_captured_the_second_time():
    graphs = ReplayedGraphs()
    runner = GraphRunner(graphs)
    double = lambda x: (2 * x,)  # noqa: E731
    for captures in (0, 1, 1):
        assert runner.run(double, (), [torch.ones(1, 2)], recurs=False)[0].tolist() == [[2.0, 2.0]]
        assert graphs.captures == captures


def test_buckets():
    assert [bucket_of(n) for n in (1, 2, 3, 5, 8, 9, 16, 17, 33, 64)] == [1, 2, 4, 8, 8, 16, 16, 32, 48, 64]


def test_mixed_precision_stays_close_and_its_results_are_float32(models, features, one):
    eager, cuda = EagerEngine(models["wide"]), CudaEngine(models["wide"], torch.bfloat16)
    pixels = torch.randn(1, 3, 256, 128, generator=torch.Generator().manual_seed(1))
    memory = random_memory(eager.config, one.map_hw, objects=2, maps=3, pointers=4)
    conditioned = torch.randn(2, *one.stride16.shape[1:], generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        pairs = [*zip(cuda.encode(pixels), eager.encode(pixels), strict=True)]
        pairs.append((cuda.read_memory(one, memory), eager.read_memory(one, memory)))
        ours, expected = (e.decode(one, multimask=True, conditioned=conditioned) for e in (cuda, eager))
        pairs += [(ours.logits, expected.logits), (ours.object_pointers, expected.object_pointers)]
        pairs.append(
            tuple(
                e.write_memory(one, ours.logits[:, 0, 0], ours.object_scores[:, 0], binarize=False)
                for e in (cuda, eager)
            )
        )
    for a, b in pairs:
        assert_close(a, b, 0.02)  # bfloat16 keeps 8 bits
        assert not a.equal(b), "nothing ran in bfloat16"


@pytest.mark.parametrize("part", LORA_TARGETS)
def test_adapters_work(tiny_model, part):
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model = copy.deepcopy(tiny_model)
    cuda = CudaEngine(model, graphs=ReplayedGraphs())
    everything_an_engine_computes(cuda, pixels)
    model = lora(model, LORA_TARGETS[part])
    expected = everything_an_engine_computes(EagerEngine(model), pixels)
    for ours, theirs in zip(everything_an_engine_computes(cuda, pixels), expected, strict=True):
        assert_close(ours, theirs)


def test_new_weights_take_effect(tiny_model):
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model = copy.deepcopy(tiny_model)
    cuda = CudaEngine(model, graphs=ReplayedGraphs())
    before = everything_an_engine_computes(cuda, pixels)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05)
    after = everything_an_engine_computes(cuda, pixels)
    for ours, expected in zip(after, everything_an_engine_computes(EagerEngine(model), pixels), strict=True):
        assert_close(ours, expected)
    assert not before[0].equal(after[0])


def test_sam_2_0_has_its_own_memory(tiny_config):
    from dataclasses import replace

    from engine.conftest import random_model

    model = random_model(replace(tiny_config, is_v2_1=False))
    eager, cuda = EagerEngine(model), CudaEngine(model)
    with torch.inference_mode():
        encoded = eager.encode(torch.randn(1, 3, 64, 64))
        memory = random_memory(model.config, encoded.map_hw, objects=2)
        assert_close(cuda.read_memory(encoded, memory), eager.read_memory(encoded, memory))
        logits, scores = torch.randn(2, 16, 16), torch.tensor([[1.0], [-1.0]])
        written = cuda.write_memory(encoded, logits, scores, binarize=True)
        assert_close(written, eager.write_memory(encoded, logits, scores, binarize=True))


def test_a_pickled_engine_keeps_its_precision(tiny_model):
    for engine in (CudaEngine(tiny_model, torch.bfloat16), CudaEngine(tiny_model)):
        assert pickle.loads(pickle.dumps(engine)).products is engine.products


def test_auto_takes_the_cuda_engine_on_a_cuda_device(monkeypatch):
    made = []
    monkeypatch.setattr("masklet.engine.CudaEngine", lambda model, precision: made.append(precision) or "the engine")
    monkeypatch.setattr("masklet.engine.default_precision", lambda device: torch.bfloat16)
    config = SimpleNamespace(is_edgetam=False)
    model = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, config=config)
    for name in ("auto", "cuda"):
        assert make_engine(model, name, mixed=True) == make_engine(model, name) == "the engine"
    assert made == 2 * [torch.bfloat16, torch.float32]
    assert type(make_engine(model, "eager")) is EagerEngine


def test_the_engine_needs_a_cuda_device(tiny_model):
    with pytest.raises(ConfigError, match="engine 'cuda' cannot run a model on cpu: expected a CUDA device"):
        make_engine(tiny_model, "cuda")


def test_confident_masks_agree(engines, one):
    eager, cuda = engines
    prompts = prompts_for((256, 128), batch=1, objects=37, points=1)
    with torch.inference_mode():
        scores = eager.decode(one, prompts, multimask=True).iou_scores.flatten().sort().values
        cut = ((scores[50] + scores[51]) / 2).item()
        expected, ours = (e.decode_confident(one, prompts, iou_threshold=cut) for e in (eager, cuda))
    assert ours.objects.tolist() == expected.objects.tolist()
    assert_close(ours.logits, expected.logits)
