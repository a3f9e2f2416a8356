"""Every engine against the eager one, function by function, and whatever may be done to a network."""

import copy
import pickle

import numpy as np
import peft
import pytest
import torch
from edgetam import SMALL, random_edgetam
from engine.conftest import assert_close, random_memory, random_model

import masklet
from masklet.config import Sam2Config
from masklet.engine import CpuEngine, EagerEngine, base, make_engine
from masklet.errors import ConfigError, ImageError
from masklet.model.layers import LayerNorm
from masklet.model.neck import Features
from masklet.model.prompt_encoder import PADDING, Prompts


def prompts_for(size_hw, *, batch=2, objects=3, points=2, seed=2):
    generator = torch.Generator().manual_seed(seed)
    size_xy = torch.tensor([size_hw[1], size_hw[0]])
    return Prompts(
        torch.rand(batch, objects, points, 2, generator=generator) * size_xy,
        torch.randint(0, 2, (batch, objects, points), generator=generator),
    )


def kinds_of_prompts(size_hw):
    clicks = prompts_for(size_hw)
    generator = torch.Generator().manual_seed(3)
    masks = 5 * torch.randn(2, 3, size_hw[0] // 4, size_hw[1] // 4, generator=generator)
    corners = prompts_for(size_hw, seed=4).points
    boxes = torch.cat([corners.amin(2), corners.amax(2)], -1)
    padded = clicks.labels.clone()
    padded[0, 1, 1] = PADDING
    return {
        "none": None,
        "one object": prompts_for(size_hw, objects=1),
        "one click each": prompts_for(size_hw, points=1),
        "clicks": clicks,
        "boxes": Prompts(boxes=boxes),
        "clicks and boxes": Prompts(clicks.points, clicks.labels, boxes),
        "masks": Prompts(masks=masks),
        "clicks and masks": Prompts(clicks.points, clicks.labels, masks=masks),
        "padded": Prompts(clicks.points, padded, has_padding=True),
        "many tokens": prompts_for(size_hw, points=40),
        "many objects": prompts_for(size_hw, objects=37),
    }


def assert_decoded_alike(ours, expected):
    for name in ("logits", "iou_scores", "object_scores", "mask_tokens", "object_pointers"):
        assert_close(getattr(ours, name), getattr(expected, name))


def encoded(engine, pixels):
    with torch.inference_mode():
        return engine.encode(pixels)


# Function by function


def test_encode_agrees(engines):
    eager, cpu = engines
    side = eager.config.image_size
    for size_hw in ((side, side), (side // 2, side), (side, 3 * side // 2)):
        pixels = torch.randn(2, 3, *size_hw, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            for ours, expected in zip(cpu.encode(pixels), eager.encode(pixels), strict=True):
                assert_close(ours, expected)


@pytest.mark.parametrize("multimask", [True, False, None])
@pytest.mark.parametrize("kind", [*kinds_of_prompts((64, 32))])
def test_decode_agrees(engines, features, kind, multimask):
    eager, cpu = engines
    size_hw = (features.map_hw[0] * 16, features.map_hw[1] * 16)
    prompts = kinds_of_prompts(size_hw)[kind]
    with torch.inference_mode():
        expected = eager.decode(features, prompts, multimask=multimask)
        assert_decoded_alike(cpu.decode(features, prompts, multimask=multimask), expected)


@pytest.mark.parametrize("objects", [1, 16])
def test_tracked_objects_are_decoded_alike_and_none_changes_a_bit_of_another(engines, features, objects):
    eager, cpu = engines
    one = Features(*(maps[:1] for maps in features))
    conditioned = torch.randn(objects, *features.stride16.shape[1:], generator=torch.Generator().manual_seed(6))
    with torch.inference_mode():
        expected = eager.decode(one, multimask=True, conditioned=conditioned)
        ours = cpu.decode(one, multimask=True, conditioned=conditioned)
        alone = cpu.decode(one, multimask=True, conditioned=conditioned[-1:])
    assert_decoded_alike(ours, expected)
    for name in ("logits", "iou_scores", "object_scores", "object_pointers"):
        assert getattr(ours, name)[-1:].equal(getattr(alone, name))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_confident_masks_agree(engines, features, share):
    eager, cpu = engines
    one = Features(*(maps[:1] for maps in features))
    prompts = prompts_for((features.map_hw[0] * 16, features.map_hw[1] * 16), batch=1, objects=37, points=1)
    with torch.inference_mode():
        scores = eager.decode(one, prompts, multimask=True).iou_scores.flatten().sort().values
        # Between two scores that differ by more than rounding.
        cuts = ((scores[1:] + scores[:-1]) / 2)[scores.diff() > 1e-4].tolist()
        cut = [-1.0, *cuts, 2.0][round(share * (len(cuts) + 1))]
        expected = eager.decode_confident(one, prompts, iou_threshold=cut)
        ours = cpu.decode_confident(one, prompts, iou_threshold=cut)
    assert ours.objects.tolist() == expected.objects.tolist()
    assert_close(ours.logits, expected.logits)
    assert_close(ours.iou_scores, expected.iou_scores)


@pytest.mark.parametrize("objects", [1, 16])
@pytest.mark.parametrize(("maps", "pointers"), [(1, 0), (7, 16)])
def test_read_memory_agrees(engines, features, objects, maps, pointers):
    eager, cpu = engines
    one = Features(*(level[:1] for level in features))
    memory = random_memory(eager.config, features.map_hw, objects=objects, maps=maps, pointers=pointers)
    with torch.inference_mode():
        assert_close(cpu.read_memory(one, memory), eager.read_memory(one, memory))


def test_empty_slots_of_memory_are_ignored(engines, features):
    one = Features(*(level[:1] for level in features))
    full = random_memory(engines[0].config, features.map_hw, objects=2, maps=3, pointers=4)
    is_empty = torch.zeros(2, 9, dtype=torch.bool)
    is_empty[:, [3, 8]] = True
    rubbish = 1e3 * torch.ones(2, 1, *full.maps.shape[2:]).bfloat16()
    padded = random_memory(engines[0].config, features.map_hw, objects=2, maps=4, pointers=5, is_empty=is_empty)
    padded = type(full)(
        torch.cat([full.maps, rubbish], 1),
        torch.cat([full.map_slots, padded.map_slots[:, :1]], 1),
        torch.cat([full.pointers, 1e3 * torch.ones_like(full.pointers[:, :1])], 1),
        torch.cat([full.pointer_distances, padded.pointer_distances[:, :1]], 1),
        is_empty,
    )
    for engine in engines:
        with torch.inference_mode():
            assert_close(engine.read_memory(one, padded), engine.read_memory(one, full), 1e-4)


@pytest.mark.parametrize("binarize", [True, False])
@pytest.mark.parametrize("objects", [1, 16])
def test_write_memory_agrees(engines, features, objects, binarize):
    eager, cpu = engines
    one = Features(*(level[:1] for level in features))
    generator = torch.Generator().manual_seed(7)
    h, w = features.map_hw
    logits, scores = 5 * torch.randn(objects, 4 * h, 4 * w, generator=generator), torch.randn(objects, 1)
    with torch.inference_mode():
        expected = eager.write_memory(one, logits, scores, binarize=binarize)
        assert_close(cpu.write_memory(one, logits, scores, binarize=binarize), expected)


# Images and videos


@pytest.mark.slow
def test_images_and_videos_have_the_same_masks(repository):
    engines = {name: masklet.load(engine=name, dtype="float32") for name in ("eager", "cpu")}
    assert [sam.engine.name for sam in engines.values()] == ["eager", "cpu"]
    grid = [[(x, y)] for x in range(100, 900, 200) for y in range(75, 600, 150)]
    masks, tracks = {}, {}
    for name, sam in engines.items():
        image = sam.image(repository / "examples/images/truck.jpg")
        masks[name] = [image.predict(grid).masks, image.predict(box=(40, 140, 860, 430)).masks]
        video = sam.video(repository / "examples/videos/dog.mp4")
        for number in range(16):
            video.prompt(0, number, box=(300 - 10 * number, 40, 520 + 5 * number, 420))
        tracks[name] = [result.masks.masks for result in video.track(end=3)]
    for eager, cpu in ((masks["eager"], masks["cpu"]), (tracks["eager"], tracks["cpu"])):
        assert np.mean(np.concatenate([(a != b).ravel() for a, b in zip(eager, cpu, strict=True)])) <= 1e-4


# Networks that were changed


def lora(model, pattern):
    """The network with adapters that say something, unmerged."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=pattern, init_lora_weights=False)
    wrapped = peft.inject_adapter_in_model(config, model)
    return wrapped.eval().requires_grad_(False)


LORA_TARGETS = {
    "encoder": r"vision_encoder\.backbone\..*\.(qkv|proj|proj_in|proj_out)",
    "neck": r"vision_encoder\.neck\.convs\.\d",
    "decoder": r"mask_decoder\.transformer\..*\.(q_proj|k_proj|v_proj|o_proj)",
    "memory": r"memory_attention\..*\.(q_proj|k_proj|v_proj|linear1)",
}


def everything_an_engine_computes(engine, pixels):
    with torch.inference_mode():
        features = engine.encode(pixels)
        prompts = prompts_for(pixels.shape[-2:], batch=1)
        decoded = engine.decode(features, prompts, multimask=True)
        memory = random_memory(engine.config, features.map_hw, objects=2)
        confident = engine.decode_confident(features, prompts, iou_threshold=0.0)
        return [
            *features,
            decoded.logits,
            decoded.object_pointers,
            confident.logits,
            engine.read_memory(features, memory),
        ]


@pytest.mark.parametrize("part", LORA_TARGETS)
@pytest.mark.parametrize("when", ["before the engine", "after its first use"])
def test_adapters_work_in_every_engine(tiny_model, part, when):
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model = copy.deepcopy(tiny_model)
    plain = everything_an_engine_computes(EagerEngine(model), pixels)
    cpu = CpuEngine(model)
    if when == "after its first use":
        everything_an_engine_computes(cpu, pixels)
    model = lora(model, LORA_TARGETS[part])
    cpu = cpu if when == "after its first use" else CpuEngine(model)
    expected = everything_an_engine_computes(EagerEngine(model), pixels)
    assert any(not a.equal(b) for a, b in zip(plain, expected, strict=True)), "the adapters say nothing"
    for ours, theirs in zip(everything_an_engine_computes(cpu, pixels), expected, strict=True):
        assert_close(ours, theirs)


class Doubled(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return 2 * self.layer(x)


@pytest.mark.parametrize(
    "place",
    [
        "vision_encoder.backbone.blocks.1.attn.qkv",
        "vision_encoder.neck.convs.3",
        "mask_decoder.conv_s0",
        "mask_decoder.upscale_conv1",
        "mask_decoder.transformer.layers.1.cross_attn_image_to_token.q_proj",
        "mask_decoder.output_hypernetworks_mlps.1",
        "memory_attention.layers.0.cross_attn_image.k_proj",
        "memory_attention.layers.0.linear2",
    ],
)
def test_replaced_layers_and_new_weights_take_effect(tiny_model, place):
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model = copy.deepcopy(tiny_model)
    eager, cpu = EagerEngine(model), CpuEngine(model)
    everything_an_engine_computes(cpu, pixels)  # packs the weights
    parent, _, name = place.rpartition(".")
    layer = model.get_submodule(place)
    setattr(model.get_submodule(parent), name, Doubled(layer))
    replaced = everything_an_engine_computes(eager, pixels)
    for ours, expected in zip(everything_an_engine_computes(cpu, pixels), replaced, strict=True):
        assert_close(ours, expected)
    setattr(model.get_submodule(parent), name, layer)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.add_(0.1)
    for ours, expected in zip(
        everything_an_engine_computes(cpu, pixels), everything_an_engine_computes(eager, pixels), strict=True
    ):
        assert_close(ours, expected)


@pytest.mark.parametrize("name", ["eager", "cpu"])
def test_copies_and_pickles_of_an_engine_have_a_network_of_their_own(tiny_model, name):
    engine = make_engine(copy.deepcopy(tiny_model), name)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    before = encoded(engine, pixels)
    for again in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        assert type(again) is type(engine)
        assert all(map(torch.equal, encoded(again, pixels), before))
        for weight in again.model.vision_encoder.neck.convs[3].parameters():
            torch.nn.init.zeros_(weight)
        assert not encoded(again, pixels).stride4.equal(before.stride4)
        assert all(map(torch.equal, encoded(engine, pixels), before))


def test_a_network_may_be_made_in_inference_mode(tiny_model):
    pixels = torch.zeros(1, 3, 64, 64)
    with torch.inference_mode():
        made = copy.deepcopy(tiny_model)
    for name in ("eager", "cpu"):
        engine, expected = make_engine(made, name), encoded(make_engine(tiny_model, name), pixels)
        assert all(map(torch.equal, encoded(engine, pixels), expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_that_is_converted_later_runs_in_its_new_precision(tiny_model, dtype):
    model = copy.deepcopy(tiny_model)
    cpu, pixels = make_engine(model, "cpu"), torch.zeros(1, 3, 64, 64)
    with torch.inference_mode():
        cpu.decode(cpu.encode(pixels), prompts_for((64, 64), batch=1), multimask=True)
        model.to(dtype)
        features = cpu.encode(pixels)
        memory = random_memory(model.config, features.map_hw, objects=1, maps=2, pointers=1)
        prompts = prompts_for((64, 64), batch=1)
        assert cpu.decode(features, prompts, multimask=True).logits.dtype == dtype
        assert cpu.decode_confident(features, prompts, iou_threshold=0.0).logits.dtype == dtype
        expected = make_engine(model, "eager")
        assert all(map(torch.equal, features, expected.encode(pixels)))
        assert_close(cpu.read_memory(features, memory).float(), expected.read_memory(features, memory).float(), 1e-2)


def test_hooks_are_called(tiny_model):
    model = copy.deepcopy(tiny_model)
    cpu = CpuEngine(model)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    everything_an_engine_computes(cpu, pixels)
    called = []
    for name in ("mask_decoder.transformer.layers.0.cross_attn_token_to_image.k_proj", "vision_encoder.neck.convs.2"):
        hook = model.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
        everything_an_engine_computes(cpu, pixels)
        assert name in called
        hook.remove()
        called.clear()
        everything_an_engine_computes(cpu, pixels)
        assert not called


# Precision


def test_norms_positions_and_rotations_stay_in_float32(tiny_model):
    model = copy.deepcopy(tiny_model).to(torch.bfloat16)
    narrow = {name for name, tensor in model.state_dict().items() if tensor.dtype == torch.bfloat16}
    wide = {name for name, tensor in model.state_dict().items() if tensor.dtype == torch.float32}
    assert narrow | wide == model.state_dict().keys()
    norms = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, LayerNorm)}
    assert norms <= wide
    tables = {"shared_image_embedding.positional_embedding", "memory_temporal_positional_encoding"}
    assert tables | {"vision_encoder.backbone.pos_embed", "vision_encoder.backbone.pos_embed_window"} <= wide
    assert model.mask_decoder.conv_s0.weight.dtype == model.dtype == torch.bfloat16
    for name in wide:
        assert model.state_dict()[name].equal(tiny_model.state_dict()[name])


def test_positions_are_as_exact_in_bfloat16_as_in_float32(tiny_model):
    narrow = copy.deepcopy(tiny_model).to(torch.bfloat16)
    points = torch.tensor([[0.5003, 0.25], [0.5004, 0.25]])  # half a pixel apart at 5,000 pixels
    assert narrow.shared_image_embedding(points).equal(tiny_model.shared_image_embedding(points))


def test_bfloat16_runs_every_function(tiny_model):
    engine = make_engine(copy.deepcopy(tiny_model).to(torch.bfloat16))
    assert engine.name == "eager"
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    exact = everything_an_engine_computes(EagerEngine(tiny_model), pixels)
    for ours, expected in zip(everything_an_engine_computes(engine, pixels)[:5], exact[:5], strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - expected).norm() < 0.1 * expected.norm()


# EdgeTAM


def encodings(model, pixels):
    with torch.inference_mode():
        return EagerEngine(model).encode(pixels), CpuEngine(model).encode(pixels)


def test_statistics_of_batch_norms_are_read_again_when_they_change():
    model = random_edgetam(SMALL)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    cpu = CpuEngine(model)
    before = encoded(cpu, pixels)
    model.vision_encoder.backbone.timm_model.stem.conv1.bn.running_var.mul_(4)
    for ours, expected, earlier in zip(encoded(cpu, pixels), encoded(EagerEngine(model), pixels), before, strict=True):
        assert_close(ours, expected)
        assert not torch.allclose(ours, earlier)


def test_a_batch_norm_that_is_trained_normalises_by_its_batch_in_every_engine():
    model = random_edgetam(SMALL).train()
    cpu = CpuEngine(model)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for ours, expected in zip(encoded(cpu, pixels), encoded(EagerEngine(copy.deepcopy(model)), pixels), strict=True):
        assert_close(ours, expected)


@pytest.mark.parametrize(
    "place",
    [
        "vision_encoder.backbone.timm_model.stages_1.blocks.0.token_mixer.conv.c",
        "memory_attention.layers.1.cross_attn_image.k_proj",
        "spatial_perceiver.layers.0.cross_attention.q_proj",
    ],
)
def test_replaced_layers_of_edgetam_run_in_every_engine(place):
    model = random_edgetam(SMALL)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    cpu = CpuEngine(model)
    everything_an_engine_computes(cpu, pixels)
    model.set_submodule(place, Doubled(model.get_submodule(place)))
    expected = everything_an_engine_computes(EagerEngine(model), pixels)
    for ours, theirs in zip(everything_an_engine_computes(cpu, pixels), expected, strict=True):
        assert_close(ours, theirs)


# Export


class Encode(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.engine = model, EagerEngine(model)

    def forward(self, pixel_values):
        return tuple(self.engine.encode(pixel_values))


class Decode(Encode):
    def forward(self, stride4, stride8, stride16, points, labels):
        decoded = self.engine.decode(Features(stride4, stride8, stride16), Prompts(points, labels), multimask=True)
        return decoded.logits, decoded.iou_scores, decoded.object_scores, decoded.object_pointers


class ReadMemory(Encode):
    def forward(self, stride4, stride8, stride16, *memory):
        from masklet.model.memory_attention import Memory

        return self.engine.read_memory(Features(stride4, stride8, stride16), Memory(*memory))


class WriteMemory(Encode):
    def forward(self, stride4, stride8, stride16, logits, object_scores):
        return self.engine.write_memory(Features(stride4, stride8, stride16), logits, object_scores, binarize=False)


def inputs_of(model):
    """Arguments of the four functions."""
    side = model.config.image_size
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, side, side, generator=generator)
    with torch.no_grad():
        features = tuple(EagerEngine(model).encode(pixels))
    clicks = prompts_for((side, side), batch=1)
    memory = random_memory(model.config, (side // 16, side // 16), objects=2)
    memory = (memory.maps, memory.map_slots, memory.pointers, memory.pointer_distances)
    logits = torch.randn(2, side // 4, side // 4, generator=generator)
    return {
        Encode: (pixels,),
        Decode: (*features, clicks.points, clicks.labels),
        ReadMemory: (*features, *memory),
        WriteMemory: (*features, logits, torch.ones(2, 1)),
    }


@pytest.fixture(scope="module")
def model_to_export(request, tiny_model):
    if request.param == "embedded":
        return masklet.load().model
    return tiny_model if request.param == "smallest" else random_model(Sam2Config())


@pytest.mark.slow
@pytest.mark.xdist_group("export")
@pytest.mark.parametrize("function", [Encode, Decode, ReadMemory, WriteMemory])
@pytest.mark.parametrize("model_to_export", ["smallest", "SAM 2.1 tiny", "embedded"], indirect=True)
def test_the_four_functions_can_be_exported(model_to_export, function):
    model = model_to_export
    module, inputs = function(model).eval(), inputs_of(model)[function]
    with torch.no_grad():
        exported = torch.export.export(module, inputs, strict=False)
        found, expected = exported.module()(*inputs), module(*inputs)
    for ours, plain in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True):
        assert_close(ours, plain)


# Choosing one


def test_auto_is_the_fast_engine_where_it_runs(tiny_model):
    assert make_engine(tiny_model).name == make_engine(tiny_model, "cpu").name == "cpu"
    assert make_engine(tiny_model, "eager").name == "eager"
    assert make_engine(copy.deepcopy(tiny_model).to(torch.float64)).name == "eager"


def test_an_engine_that_does_not_fit_is_refused(tiny_model, tiny_folder):
    with pytest.raises(ConfigError, match="engine is 'gpu': expected one of auto, eager, cpu"):
        make_engine(tiny_model, "gpu")
    with pytest.raises(
        ConfigError, match=r"engine 'cpu' cannot run a model in torch.bfloat16 on cpu: expected float32"
    ):
        masklet.load(tiny_folder, dtype=torch.bfloat16, engine="cpu")


def test_images_of_wrong_shapes_are_refused(engines):
    for engine in engines:
        with pytest.raises(
            ImageError, match="expected \\(batch, 3, height, width\\) with sides that are multiples of 32"
        ):
            engine.encode(torch.zeros(1, 3, 64, 65))


def test_position_tables_are_computed_once_for_a_size_and_on_the_cpu(tiny_model, monkeypatch):
    devices, compute = [], base.window_positions

    def counted(grid, window, size_hw):
        devices.append(grid.device.type)
        return compute(grid, window, size_hw)

    monkeypatch.setattr(base, "window_positions", counted)
    model = copy.deepcopy(tiny_model)
    for engine in (EagerEngine(model), CpuEngine(model)):
        devices.clear()
        for side, calls in ((64, 1), (64, 1), (96, 2), (96, 2)):
            with torch.inference_mode():
                engine.encode(torch.zeros(1, 3, side, side))
            assert devices == ["cpu"] * calls
        with torch.no_grad():
            model.vision_encoder.backbone.pos_embed.add_(0.1)
        with torch.inference_mode():
            engine.encode(torch.zeros(1, 3, 96, 96))
        assert len(devices) == 3
