"""LoRA through PEFT: adds adapters beside linear layers, and merges them into plain weights.

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

ADAPTER_NAME = "default"
"""The name PEFT gives to a model's first adapter."""


def add_adapters(model: Sam2Model, lora: LoraConfig) -> None:
    """Adds adapters, in place, to the linear layers that ``lora`` names. Untrained, they do not change the output.

    Raises:
        ConfigError: A pattern matches no linear layer, or PEFT is not installed.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for pattern in lora.targets:
        if not any(fnmatchcase(name, pattern) for name in linear):
            raise ConfigError(
                f"lora targets {pattern!r} match no linear layer of the model: expected a pattern such as "
                f"mask_decoder.*_proj or, in SAM 2, vision_encoder.*.qkv; the model has {', '.join(linear[:3])} …"
            )
    targets = [name for name in linear if any(fnmatchcase(name, pattern) for pattern in lora.targets)]
    try:
        import peft
    except ImportError as error:
        raise ConfigError('lora needs PEFT, which is not installed: pip install "masklet[train]"') from error
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules="|".join(map(re.escape, targets)), lora_dropout=0.0
    )
    peft.inject_adapter_in_model(config, model, ADAPTER_NAME)


def merge_adapters(state: Mapping[str, Tensor], lora: LoraConfig | None) -> dict[str, Tensor]:
    """The weights of a plain model that computes the same as a model with adapters.

    Args:
        state: State dictionary of the model with adapters.
        lora: Configuration of the adapters; None if there are none.
    """
    if lora is None:
        return dict(state)
    plain = {}
    for name, weight in state.items():
        if ".lora_" in name:
            continue
        if name.endswith(base := ".base_layer.weight"):
            layer = name.removesuffix(base)
            down, up = (state[f"{layer}.lora_{side}.{ADAPTER_NAME}.weight"] for side in "AB")
            weight = weight + (lora.alpha / lora.rank) * (up @ down)
        plain[name.replace(".base_layer.", ".")] = weight
    return plain
