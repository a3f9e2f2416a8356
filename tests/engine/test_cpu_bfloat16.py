"""Products in bfloat16, against the eager engine in float32. They are right, though slow, on any processor."""

import copy
import pickle

import pytest
import torch
from engine.conftest import random_memory
from engine.test_engines import kinds_of_prompts, lora

import masklet
from masklet.engine import CpuEngine, EagerEngine, make_engine
from masklet.engine.cpu import products
from masklet.model.neck import Features

NARROW = torch.bfloat16


def assert_near(ours, expected, share=0.03):
    """The difference is a share of what is expected, in the 2-norm; bfloat16 has eight bits."""
    assert ours.shape == expected.shape
    assert ours.dtype == torch.float32
    assert (ours - expected).norm() <= share * expected.norm()


@pytest.fixture(scope="module")
def both(engines):
    """(eager, cpu with products in bfloat16) of one network."""
    return engines[0], CpuEngine(engines[0].model, NARROW)


@pytest.fixture(scope="module")
def one(features):
    """Features of one image."""
    return Features(*(level[:1] for level in features))


def test_encode_is_near(both):
    eager, narrow = both
    side = eager.config.image_size
    pixels = torch.randn(1, 3, side // 2, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        for ours, expected in zip(narrow.encode(pixels), eager.encode(pixels), strict=True):
            assert_near(ours, expected)
            assert not ours.equal(expected)


@pytest.mark.parametrize("kind", [*kinds_of_prompts((64, 32))])
def test_decode_is_near(both, features, kind):
    eager, narrow = both
    prompts = kinds_of_prompts((features.map_hw[0] * 16, features.map_hw[1] * 16))[kind]
    with torch.inference_mode():
        ours = narrow.decode(features, prompts, multimask=True)
        expected = eager.decode(features, prompts, multimask=True)
    for name in ("logits", "iou_scores", "object_pointers"):
        assert_near(getattr(ours, name), getattr(expected, name))


def test_memory_is_near(both, features, one):
    eager, narrow = both
    memory = random_memory(eager.config, features.map_hw, objects=2, maps=7, pointers=16)
    h, w = features.map_hw
    logits = 5 * torch.randn(2, 4 * h, 4 * w, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        assert_near(narrow.read_memory(one, memory), eager.read_memory(one, memory))
        scores = torch.tensor([[1.0], [-1.0]])
        written = [engine.write_memory(one, logits, scores, binarize=False) for engine in both]
    assert_near(written[1], written[0])


def test_scores_of_attention_of_any_size_are_weights():
    """Blocks of queries against the plain formula, with queries that fill no whole block."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 32, generator=generator).bfloat16() for n in (300, 5000, 5000))
    expected = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    found = products.attention(q, k, v)
    assert (found.double() - expected).norm() < 0.02 * expected.norm()


def everything(engine, one, objects):
    """All functions, for the last of some objects, and an image that was the last of a batch."""
    memory = random_memory(engine.config, one.map_hw, objects=4, maps=3, pointers=4)
    chosen = slice(4 - objects, 4)
    memory = type(memory)(
        memory.maps[chosen], memory.map_slots[chosen], memory.pointers[chosen], memory.pointer_distances[chosen]
    )
    side = one.map_hw[0] * 16
    pixels = torch.randn(4, 3, side, side // 2, generator=torch.Generator().manual_seed(1))[chosen]
    h, w = one.map_hw
    logits = torch.randn(4, 4 * h, 4 * w, generator=torch.Generator().manual_seed(7))[chosen]
    with torch.inference_mode():
        read = engine.read_memory(one, memory)
        decoded = engine.decode(one, multimask=True, conditioned=read)
        written = engine.write_memory(one, logits, torch.ones(objects, 1), binarize=True)
        return [
            x[-1]
            for x in (
                read,
                decoded.logits,
                decoded.iou_scores,
                decoded.object_pointers,
                written,
                *engine.encode(pixels),
            )
        ]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, NARROW])
def test_no_object_or_image_changes_a_bit_of_another_and_runs_are_repeatable(both, one, dtype, threads):
    engine, before = CpuEngine(both[0].model, dtype), torch.get_num_threads()
    torch.set_num_threads(threads)
    alone, again, together = (everything(engine, one, objects) for objects in (1, 1, 4))
    torch.set_num_threads(before)
    assert all(map(torch.equal, alone, again))
    assert all(map(torch.equal, alone, together))


def test_changed_layers_take_the_plain_path(tiny_model):
    model = lora(copy.deepcopy(tiny_model), r"(vision_encoder|mask_decoder|memory_attention)\..*(qkv|q_proj)")
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        for ours, expected in zip(
            CpuEngine(model, NARROW).encode(pixels), EagerEngine(model).encode(pixels), strict=True
        ):
            torch.testing.assert_close(ours, expected)


# Choosing the precision


@pytest.mark.parametrize("has_products", [True, False])
def test_auto_multiplies_in_bfloat16_where_the_processor_is_faster_at_that(tiny_folder, monkeypatch, has_products):
    monkeypatch.setattr("masklet.engine.has_bfloat16_products", lambda: has_products)
    engine = masklet.load(tiny_folder, "cpu").engine
    assert engine.name == "cpu"
    assert engine.dtype == torch.float32
    assert engine.products == (NARROW if has_products else torch.float32)
    assert masklet.load(tiny_folder, "cpu", "float32").engine.products == torch.float32
    assert masklet.load(tiny_folder, "cpu", torch.float32).engine.products == torch.float32
    assert masklet.load(tiny_folder, "cpu", engine="eager").engine.name == "eager"


def test_a_network_that_exists_runs_in_its_own_precision_unless_asked(tiny_model):
    assert make_engine(tiny_model).products == torch.float32
    for engine in (CpuEngine(tiny_model, NARROW), CpuEngine(tiny_model)):
        assert pickle.loads(pickle.dumps(engine)).products == copy.deepcopy(engine).products == engine.products


@pytest.mark.parametrize(
    ("capabilities", "level", "expected"),
    [
        ({"avx512_bf16": True}, "AVX512", True),
        ({"amx_bf16": True}, "AVX512", True),
        ({"avx512_f": True}, "AVX512", False),
        ({"avx512_bf16": True}, "AVX2", False),  # a limit set by ATEN_CPU_CAPABILITY
        ({}, "DEFAULT", False),
    ],
)
def test_torch_tells_whether_there_are_such_products(monkeypatch, capabilities, level, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert products.has_bfloat16_products() is expected
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert products.has_bfloat16_products() is False
