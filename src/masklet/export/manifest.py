"""The manifest of an exported folder: what the graphs are made of. It needs no torch, since the runtime reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from masklet.config import SizeHW
from masklet.errors import CheckpointError
from masklet.numbers import real_number, shown, size_of, whole_number

MANIFEST, GLUE = "manifest.json", "glue.safetensors"
FORMAT = "masklet-onnx-1"
GRAPHS = ("image_encoder", "prompt_decoder", "memory_attention", "memory_encoder")
"""Names of the graphs. The last two are those of a network with memory."""
FINGERPRINT_KEY = "masklet.fingerprint"
"""In the metadata of every graph: which network it belongs to."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The numbers that whoever runs the graphs needs."""

    masklet: str
    """Version that wrote the folder."""
    fingerprint: str
    """Fingerprint of the network: structure and weights."""
    input_hw: SizeHW
    """(height, width) of the network's input, to which images are stretched."""
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    rescale_factor: float
    hidden_size: int
    memory_channels: int
    num_maskmem: int
    """Temporal slots of memory maps; the last is that of prompted frames."""
    memory_tokens: int | None = None
    """Tokens of a memory map; None, in files of earlier versions, for one in each cell of the embedding."""
    rounds_memory: bool = True
    """Whether memory maps are rounded to bfloat16, as SAM 2's are."""
    has_memory: bool
    replaces_unstable: bool
    """Whether an unstable single mask is replaced by the best of the three (SAM 2, appendix C)."""
    everything: Mapping[str, float]
    """Thresholds of automatic masks that suit the weights."""
    opset: int
    graphs: Mapping[str, Mapping[str, Any]]
    """By name: the file, its precision, and the shapes of its inputs and outputs."""

    def text(self) -> str:
        """As JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder in the layout ``masklet``.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    path = folder / MANIFEST
    how = "Export one: masklet export MODEL --out FOLDER"
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        kind = "an export for other programs" if any(folder.rglob("*.onnx")) else "not an exported folder"
        kind = kind if folder.is_dir() else "no folder"
        raise CheckpointError(f"{folder} is {kind}: engine 'onnx' needs one of the layout masklet. {how}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}. {how}") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} is not of the format {FORMAT}: it was written by another version. {how}")
    try:
        return Manifest(**_checked(content))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). {how}") from error


def _checked(content: dict[str, Any]) -> dict[str, Any]:
    """The values of a manifest.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: One is missing or makes no sense.
    """
    checked: dict[str, Any] = {"input_hw": size_of("input_hw", content["input_hw"], ValueError)}
    for name, least in (("image_mean", -1e6), ("image_std", 1e-6)):
        checked[name] = tuple(real_number(name, value, ValueError, least=least, most=1e6) for value in content[name])
        if len(checked[name]) != 3:
            raise ValueError(f"{name} has {len(checked[name])} numbers: expected three")
    for name in ("hidden_size", "memory_channels", "num_maskmem", "opset"):
        checked[name] = whole_number(name, content[name], ValueError, least=0)
    checked["rescale_factor"] = real_number("rescale_factor", content["rescale_factor"], ValueError, least=1e-6)
    for name, threshold in content["everything"].items():
        real_number(name, threshold, ValueError)
    for name in GRAPHS if content["has_memory"] else GRAPHS[:2]:
        if not isinstance(file := content["graphs"][name]["file"], str):
            raise ValueError(f"the file of the graph {name} is {shown(file)}: expected a name")
    return {**content, **checked}
