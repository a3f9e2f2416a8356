"""What the tests of transformers' video classes share: a network, a video, and the two sides with the same weights."""

import copy
import functools
import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compat.torchvision_stub import has_torchvision
from parity.test_transformers import shrunken

from masklet.checkpoints.transformers import config_to_json
from masklet.compat import transformers as ours
from masklet.config import (
    RepVitConfig,
    Sam2MaskDecoderConfig,
    Sam2MemoryAttentionConfig,
    SpatialPerceiverConfig,
    edgetam_config,
)
from masklet.model.sam2 import Sam2Model as Network

SIDE, HW, FRAMES = 128, (120, 160), 6
CONFIGS = {
    # Their model fails where the channels of features and of memories, 64, are equal.
    version: shrunken(image_size=SIDE, hidden_size=128, is_v2_1=version == "2.1")
    for version in ("2.0", "2.1")
} | {
    "EdgeTAM": edgetam_config(
        image_size=SIDE,
        hidden_size=128,
        image_encoder=RepVitConfig(embed_dim_per_stage=(8, 16, 96, 64), blocks_per_stage=(1, 1, 3, 1)),
        mask_decoder=Sam2MaskDecoderConfig(mlp_dim=96, num_attention_heads=4),
        memory_attention=Sam2MemoryAttentionConfig(num_layers=2, feed_forward_hidden_size=128),
        perceiver=SpatialPerceiverConfig(num_latents=24, num_latents_2d=16),
    )
}


@functools.cache
def random_network(presence=5.0, version="2.1"):
    """A small network whose masks have borders, move, and depend on memory; logits have the scale of a trained one's.

    It does not amplify what rounding changes in memories, as most networks of random weights do.

    Args:
        presence: Bias of the object score.
        version: Of SAM 2, or EdgeTAM.
    """
    network = Network(CONFIGS[version]).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in network.state_dict().items():
        if not parameter.is_floating_point():
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        gain = 1.4 if name.startswith("memory_") else 1.2
        if name.endswith("running_var"):
            parameter.copy_(1 + 0.1 * noise.abs())
        elif ".bn." in name:  # added at full strength, residuals would grow from block to block
            parameter.copy_(0.5 * name.endswith("weight") + 0.1 * noise)
        elif parameter.ndim == 1:
            parameter.copy_(name.endswith("weight") + 0.1 * noise)
        else:
            parameter.copy_(
                noise if "embed" in name or "latents" in name else gain * noise * parameter[0].numel() ** -0.5
            )
    network.prompt_encoder.shared_embedding.load_state_dict(network.shared_image_embedding.state_dict())
    network.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(presence)
    for mlp in network.mask_decoder.output_hypernetworks_mlps:
        mlp.proj_out.weight.mul_(0.1)
        mlp.proj_out.bias.mul_(0.1)
    return network


def moving_rectangles_of(count):
    """Frames (120, 160, 3) with two rectangles that move on noise."""
    back = np.random.default_rng(0).integers(0, 90, (*HW, 3), dtype=np.uint8)
    frames = []
    for index in range(count):
        frame = back.copy()
        frame[30:70, 20 + 8 * index : 60 + 8 * index] = (240, 200, 40)
        frame[80:110, 100 - 6 * index : 140 - 6 * index] = (30, 90, 220)
        frames.append(frame)
    return frames


def make_side(kind, network):
    """A model, a processor, and classes of one side, with the weights of a network.

    Their processor needs torchvision: without it, tests of their side are skipped.
    """
    return _ours(network) if kind == "masklet" else _theirs(network)


def _ours(network):
    processor = ours.Sam2VideoProcessor(ours.Sam2ImageProcessor(size=SIDE), ours.Sam2VideoVideoProcessor(size=SIDE))
    kind = ours.EdgeTamVideoModel if network.config.is_edgetam else ours.Sam2VideoModel
    return SimpleNamespace(
        model=kind.from_network(copy.deepcopy(network)),
        processor=processor,
        session_class=ours.Sam2VideoInferenceSession,
        is_edgetam=network.config.is_edgetam,
        cache_class=ours.Sam2VideoInferenceCache,
    )


def their_model(network):
    """Their model on our processor, which needs no torchvision: it fills a session of theirs."""
    if network.config.is_edgetam:
        pytest.importorskip("timm", reason="transformers' EdgeTAM needs timm: pip install masklet[test-edgetam]")
    family, name = ("edgetam", "EdgeTam") if network.config.is_edgetam else ("sam2", "Sam2")
    modeling = importlib.import_module(f"transformers.models.{family}_video.modeling_{family}_video")
    session_class = getattr(modeling, f"{name}VideoInferenceSession")

    class Processor(ours.Sam2VideoProcessor):
        def init_video_session(self, video=None, dtype=torch.float32):
            session = super().init_video_session(video, dtype=dtype)
            frames = session.processed_frames
            pixels = None if frames is None else torch.stack([frames[i] for i in frames])
            height, width = session.video_height, session.video_width
            return session_class(pixels, height, width, dtype=dtype)

    config = getattr(modeling, f"{name}VideoConfig")(**config_to_json(network.config))
    model = getattr(modeling, f"{name}VideoModel")(config)
    model = model.eval().requires_grad_(False)
    assert not any(model.load_state_dict(network.state_dict(), strict=False))
    own = _ours(network).processor
    return SimpleNamespace(
        model=model,
        processor=Processor(own.image_processor, own.video_processor),
        session_class=session_class,
        is_edgetam=network.config.is_edgetam,
        cache_class=getattr(modeling, f"{name}VideoInferenceCache"),
    )


def _theirs(network):
    if not has_torchvision():
        pytest.skip("transformers' processors need torchvision")
    import transformers

    side = their_model(network)
    square, quarter = ({"height": length, "width": length} for length in (SIDE, SIDE // 4))
    side.processor = transformers.Sam2VideoProcessor(
        transformers.Sam2ImageProcessor(size=square, mask_size=quarter),
        transformers.Sam2VideoVideoProcessor(size=square),
    )
    return side


def prompted(side, session, frame, ids, **inputs):
    """Prompts objects and runs the frame."""
    side.processor.add_inputs_to_inference_session(session, frame_idx=frame, obj_ids=ids, **inputs)
    return side.model(session, frame_idx=frame)
