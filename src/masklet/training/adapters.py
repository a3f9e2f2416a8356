"""LoRA through PEFT: adapters beside linear layers, and their sum with them as plain weights.

Source: LoRA (arXiv 2106.09685).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import Tensor, nn

from masklet.errors import ConfigError
from masklet.model.sam2 import Sam2Model
from masklet.training.config import LoraConfig

NAME = "default"
"""PEFT's of an adapter."""


def add_adapters(model: Sam2Model, lora: LoraConfig) -> None:
    """Put adapters beside the linear layers that ``lora`` names, in place. They change nothing until they learn.

    Raises:
        ConfigError: A pattern names no linear layer, or PEFT is not installed.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for pattern in lora.targets:
        if not any(fnmatchcase(name, pattern) for name in linear):
            raise ConfigError(
                f"lora targets {pattern!r}, which is no linear layer of the model: expected a pattern such as "
                f"vision_encoder.*.qkv or mask_decoder.*_proj; there are {', '.join(linear[:3])} …"
            )
    targets = [name for name in linear if any(fnmatchcase(name, pattern) for pattern in lora.targets)]
    try:
        import peft
    except ImportError as error:
        raise ConfigError('lora needs PEFT, which is not installed: pip install "masklet[train]"') from error
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules="|".join(map(re.escape, targets)), lora_dropout=0.0
    )
    peft.inject_adapter_in_model(config, model, NAME)


def merged(state: Mapping[str, Tensor], lora: LoraConfig | None) -> dict[str, Tensor]:
    """The weights of a model with adapters as those of a plain one that computes the same."""
    if lora is None:
        return dict(state)
    plain = {}
    for name, weight in state.items():
        if ".lora_" in name:
            continue
        if name.endswith(base := ".base_layer.weight"):
            layer = name.removesuffix(base)
            down, up = (state[f"{layer}.lora_{side}.{NAME}.weight"] for side in "AB")
            weight = weight + (lora.alpha / lora.rank) * (up @ down)
        plain[name.replace(".base_layer.", ".")] = weight
    return plain
