"""EdgeTAM's parts of the cuda engine against the eager one, on a processor."""

import copy

import pytest
import torch
from edgetam import SMALL, random_edgetam
from engine.conftest import assert_close, random_memory
from engine.cuda_layout import Operators, ReplayedGraphs

from masklet.config import STRIDE
from masklet.engine import EagerEngine
from masklet.engine.cuda import CudaEngine
from masklet.model.memory_attention import Memory
from masklet.model.neck import Features


@pytest.fixture(scope="module")
def model():
    return random_edgetam(SMALL)


def functions_of(engine, device="cpu"):
    """The results of all four functions, and of memory with gaps, for three objects, each of random inputs."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(device)

    dim, side = engine.config.hidden_size, engine.config.image_size // STRIDE
    features = Features(
        random(1, dim // 8, 4 * side, 4 * side), random(1, dim // 4, 2 * side, 2 * side), random(1, dim, side, side)
    )
    is_empty = torch.rand(3, 10, generator=generator) > 0.5
    is_empty[:, 0] = False
    memory, with_gaps = (
        Memory(*(None if t is None else t.to(device) for t in vars(one).values()))
        for one in (
            random_memory(engine.config, (side, side), objects=3),
            random_memory(engine.config, (side, side), objects=3, is_empty=is_empty),
        )
    )
    with torch.inference_mode():
        decoded = engine.decode(features, multimask=True, conditioned=random(3, dim, side, side))
        logits, scores = 5 * random(3, 4 * side, 4 * side), random(3, 1)
        return [
            *engine.encode(random(1, 3, STRIDE * side, STRIDE * side)),
            engine.read_memory(features, memory),
            engine.read_memory(features, with_gaps),
            decoded.logits,
            decoded.object_pointers,
            *(engine.write_memory(features, logits, scores, binarize=binarize) for binarize in (True, False)),
        ]


@pytest.mark.parametrize("graphs", [None, ReplayedGraphs()])
def test_all_functions_agree(model, graphs):
    expected = functions_of(EagerEngine(model))
    cuda = CudaEngine(model, graphs=graphs)
    for _ in range(2):  # captured, and replayed
        for ours, theirs in zip(functions_of(cuda), expected, strict=True):
            assert_close(ours, theirs)


def test_mixed_precision_stays_close_and_its_results_are_float32(model):
    pairs = zip(functions_of(CudaEngine(model, torch.bfloat16)), functions_of(EagerEngine(model)), strict=True)
    for ours, theirs in pairs:
        assert_close(ours, theirs, 0.03)  # bfloat16 keeps 8 bits
        assert not ours.equal(theirs), "nothing ran in bfloat16"


def test_a_part_with_other_layers_runs_as_it_is(model):
    class Doubled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    changed = copy.deepcopy(model)
    cuda = CudaEngine(changed, graphs=ReplayedGraphs())
    functions_of(cuda)
    block = changed.vision_encoder.backbone.timm_model.stages_2.blocks[0].channel_mixer
    block.conv1 = Doubled(block.conv1)
    perceiver = changed.spatial_perceiver.layers[0].mlp
    perceiver.up_proj = Doubled(perceiver.up_proj)
    for ours, theirs in zip(functions_of(cuda), functions_of(EagerEngine(changed)), strict=True):
        assert_close(ours, theirs)


def test_nothing_is_read_back_from_the_device(model):
    on_meta = CudaEngine(copy.deepcopy(model).to("meta"), torch.bfloat16)
    with Operators("meta") as operators:
        functions_of(on_meta, "meta")
    assert not operators.read_back


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.03)])
def test_all_functions_agree_on_a_gpu(model, precision, tolerance):
    on_gpu = copy.deepcopy(model).to("cuda")
    expected, cuda = functions_of(EagerEngine(on_gpu), "cuda"), CudaEngine(on_gpu, precision)
    for _ in range(3):
        for ours, theirs in zip(functions_of(cuda, "cuda"), expected, strict=True):
            assert_close(ours, theirs, tolerance)
    assert len(cuda._runner) >= 4  # captured as graphs
