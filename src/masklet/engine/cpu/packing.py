"""Packed weights: rearranged once and reused until a layer or a weight changes; only for plain layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from masklet.engine.base import version_of
from masklet.model import (
    hiera,
    layers,
    mask_decoder,
    memory_attention,
    memory_encoder,
    neck,
    positions,
    prompt_encoder,
)
from masklet.model.edgetam import memory_attention as latent_attention
from masklet.model.edgetam import repvit, spatial_perceiver

PLAIN = {
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.Embedding,
    nn.Identity,
    nn.Linear,
    nn.ModuleList,
    nn.Sequential,
    layers.FeedForward,
    layers.LayerNorm,
    layers.LayerNorm2d,
    hiera.Hiera,
    hiera.HieraBlock,
    hiera.Mlp,
    hiera.MultiScaleAttention,
    hiera.PatchEmbed,
    mask_decoder.Attention,
    mask_decoder.MaskDecoder,
    mask_decoder.TwoWayAttentionBlock,
    mask_decoder.TwoWayTransformer,
    latent_attention.AttentionMlp,
    latent_attention.LatentCrossAttention,
    latent_attention.LatentMemoryAttention,
    latent_attention.LatentMemoryAttentionLayer,
    memory_attention.MemoryAttention,
    memory_attention.MemoryAttentionLayer,
    memory_attention.RotaryAttention,
    memory_encoder.MaskDownsampler,
    memory_encoder.MaskDownsamplerLayer,
    memory_encoder.MemoryEncoder,
    memory_encoder.MemoryFuser,
    memory_encoder.MemoryFuserBlock,
    neck.FpnNeck,
    neck.ImageEncoder,
    positions.FourierPositions,
    prompt_encoder.MaskEmbed,
    prompt_encoder.PromptEncoder,
    repvit.BatchNorm2d,
    repvit.ChannelMixer,
    repvit.ConvNorm,
    repvit.Downsample,
    repvit.RepVit,
    repvit.RepVitBlock,
    repvit.RepVitTrunk,
    repvit.SqueezeExcite,
    repvit.Stage,
    repvit.Stem,
    repvit.TokenMixer,
    spatial_perceiver.LatentAttention,
    spatial_perceiver.LatentMlp,
    spatial_perceiver.PerceiverLayer,
    spatial_perceiver.SpatialPerceiver,
}
"""Modules whose weights and buffers determine what they compute. Adapters and quantised layers have other classes."""

Result = TypeVar("Result")


class Packed(Generic[Result]):
    """The result of ``pack`` for a few modules; computed again when a module or a weight has changed.

    In-place changes of ``.data``, and of weights made under ``torch.inference_mode()``, cannot be detected: make a
    new engine after them.

    Args:
        roots: The modules, as they are now.
        pack: Called without arguments.
    """

    def __init__(self, roots: Callable[[], Sequence[nn.Module]], pack: Callable[[], Result]) -> None:
        self._roots = roots
        self._pack = pack
        self._state: tuple[Snapshot, Result | None] | None = None

    def get(self) -> Result | None:
        """The packed weights; None if a layer is not a plain one, or has a hook."""
        state = self._state
        roots = self._roots()
        if state is None or not state[0].is_current(roots):
            snapshot = Snapshot.take(roots)
            state = self._state = (snapshot, self._pack() if snapshot.is_plain else None)
        return state[1]


@dataclass(frozen=True)
class Snapshot:
    """Modules and weights at one moment."""

    roots: Sequence[nn.Module]
    modules: Sequence[nn.Module]  # submodules included
    # Place, name, weight and its version.
    weights: Sequence[tuple[dict[str, Any], str, Tensor, tuple[int, torch.dtype]]]
    buffers: Sequence[tuple[dict[str, Any], str, Tensor, tuple[int, torch.dtype]]]
    children: Sequence[tuple[dict[str, nn.Module | None], str, nn.Module]]  # place, name, module
    is_altered: bool

    @classmethod
    def take(cls, roots: Sequence[nn.Module]) -> Snapshot:
        """Take a snapshot of these modules."""
        modules = [module for root in roots for module in root.modules()]
        weights, buffers = (
            [(place, name, t, version_of(t)) for place in places for name, t in place.items() if t is not None]
            for places in ([m._parameters for m in modules], [m._buffers for m in modules])
        )
        children = [(m._modules, name, c) for m in modules for name, c in m._modules.items() if c is not None]
        return cls(roots, modules, weights, buffers, children, _is_altered(modules))

    @property
    def is_plain(self) -> bool:
        """Whether the weights determine what the modules compute, and are in float32."""
        return (
            all(type(module) in PLAIN for module in self.modules)
            and not self.is_altered
            and all(type(w) is nn.Parameter and w.dtype == torch.float32 for _, _, w, _ in self.weights)
        )

    def is_current(self, roots: Sequence[nn.Module]) -> bool:
        """Whether nothing has changed."""
        return (
            all(before is now for before, now in zip(self.roots, roots, strict=True))
            and all(place.get(name) is module for place, name, module in self.children)
            and all(place.get(name) is t and version_of(t) == v for place, name, t, v in (*self.weights, *self.buffers))
            and _is_altered(self.modules) == self.is_altered
        )


def _is_altered(modules: Sequence[nn.Module]) -> bool:
    """Whether a module has a hook, or a batch norm is in training mode: its result then depends on the batch."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or (module.training and type(module) is repvit.BatchNorm2d)
        for module in modules
    )
