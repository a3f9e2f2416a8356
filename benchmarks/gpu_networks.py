"""The networks that ``gpu.py`` measures, with the same random weights on both sides."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import torch

from masklet.checkpoints.meta import META_SIZES, released_config
from masklet.config import (
    Sam2Config,
    Sam2ImageEncoderConfig,
    Sam2MaskDecoderConfig,
    Sam2MemoryAttentionConfig,
)
from masklet.engine import CudaEngine
from masklet.model.sam2 import Sam2Model

SIZES = dict(zip(("tiny", "small", "base-plus", "large"), META_SIZES, strict=True))


@dataclass
class Pair:
    """Networks of the same random weights."""

    model: Sam2Model
    engine: CudaEngine
    theirs: Any  # transformers' Sam2Model
    their_video: Any  # transformers' Sam2VideoModel
    reason: str  # why there are none

    def autocast(self) -> Any:
        """The precision that transformers is measured in."""
        return torch.autocast(self.model.device.type, torch.bfloat16)


def make_pair(device: torch.device, name: str, *, is_dry: bool) -> Pair:
    torch.manual_seed(0)
    with device:  # draws the weights of large models quickly
        model = Sam2Model(miniature() if is_dry else released_config(*SIZES[name])).eval().requires_grad_(False)
    model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(10.0)  # so that no object is absent
    theirs = their_video = None
    reason = ""
    try:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            theirs = transformers.Sam2Model.from_pretrained(folder).eval().to(device)
            their_video = transformers.Sam2VideoModel.from_pretrained(folder).eval().to(device)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:300]
    model = model.to(device)
    return Pair(model, CudaEngine(model, torch.bfloat16), theirs, their_video, reason)


def miniature() -> Sam2Config:
    """A network that a CPU runs in milliseconds."""
    encoder = Sam2ImageEncoderConfig(
        hidden_size=16,
        num_attention_heads=2,
        blocks_per_stage=(1, 1, 2, 1),
        global_attention_blocks=(3,),
        window_size_per_stage=(8, 4, 4, 4),
        window_positional_embedding_background_size=(5, 5),
    )
    return Sam2Config(
        image_size=64,
        image_encoder=encoder,
        mask_decoder=Sam2MaskDecoderConfig(mlp_dim=96),
        memory_attention=Sam2MemoryAttentionConfig(num_layers=1, feed_forward_hidden_size=128),
    )
