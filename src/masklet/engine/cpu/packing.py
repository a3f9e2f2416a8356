"""Packed weights: rearranged once and reused until a layer or a weight changes; only for plain layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter, is_
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

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
    weights: Sequence[Tensor]
    # Of weights and buffers, and of submodules: the dictionary that each is in, its name there, and what it is.
    tensors: tuple[Sequence[dict[str, Any]], Sequence[str], Sequence[Tensor]]
    versions: tuple[list[int], list[torch.dtype]]  # of the tensors, see ``version_of``
    children: tuple[Sequence[dict[str, Any]], Sequence[str], Sequence[nn.Module]]
    is_altered: bool

    @classmethod
    def take(cls, roots: Sequence[nn.Module]) -> Snapshot:
        """Take a snapshot of these modules."""
        modules = [module for root in roots for module in root.modules()]
        weights = [weight for module in modules for weight in module._parameters.values() if weight is not None]
        tensors = _contents([place for module in modules for place in (module._parameters, module._buffers)])
        children = _contents([module._modules for module in modules])
        return cls(roots, modules, weights, tensors, _versions(tensors[2]), children, _is_altered(modules))

    @property
    def is_plain(self) -> bool:
        """Whether the weights determine what the modules compute, and are in float32."""
        return (
            all(type(module) in PLAIN for module in self.modules)
            and not self.is_altered
            and all(type(weight) is nn.Parameter and weight.dtype == torch.float32 for weight in self.weights)
        )

    def is_current(self, roots: Sequence[nn.Module]) -> bool:
        """Whether nothing has changed. It is asked in every frame, of hundreds of weights: so the loops are in C."""
        return (
            all(map(is_, self.roots, roots))
            and all(map(is_, map(dict.get, *self.children[:2]), self.children[2]))
            and all(map(is_, map(dict.get, *self.tensors[:2]), self.tensors[2]))
            and _versions(self.tensors[2]) == self.versions
            and _is_altered(self.modules) == self.is_altered
        )


def _contents(places: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str], list[Any]]:
    """The dictionary, the name and the value of everything in these dictionaries."""
    entries = [(place, name, value) for place in places for name, value in place.items() if value is not None]
    return [place for place, _, _ in entries], [name for _, name, _ in entries], [value for _, _, value in entries]


def _versions(tensors: Sequence[Tensor]) -> tuple[list[int], list[torch.dtype]]:
    """``version_of`` of many tensors."""
    return [0 if t.is_inference() else t._version for t in tensors], list(map(attrgetter("dtype"), tensors))


def _is_altered(modules: Sequence[nn.Module]) -> bool:
    """Whether a module has a hook, or a batch norm is in training mode: its result then depends on the batch."""
    return (
        any(map(attrgetter("_forward_hooks"), modules))
        or any(map(attrgetter("_forward_pre_hooks"), modules))
        or any(module.training for module in modules if type(module) is repvit.BatchNorm2d)
    )
