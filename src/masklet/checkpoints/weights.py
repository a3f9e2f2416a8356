"""The files of a folder that hold tensors: one or several, safetensors or PyTorch's own."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from masklet.checkpoints.damage import what_is
from masklet.checkpoints.hub import DEFAULT_HUB, HubOptions, StrPath, find, locate
from masklet.errors import CheckpointError

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
_EXPECTED = "Expected a whole {kind} file; fetch or copy it again"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def read_weights(
    name_or_path: StrPath, hub: HubOptions = DEFAULT_HUB, *, use_safetensors: bool | None = None
) -> dict[str, Tensor]:
    """Reads the tensors of a model.

    Args:
        name_or_path: As ``checkpoints.read`` takes it.
        hub: How they are fetched.
        use_safetensors: True for safetensors only, False for ``pytorch_model.bin`` only, None for what is there, with
            priority for safetensors.

    Raises:
        CheckpointError: No such file is there, or it is damaged.
    """
    kinds = {None: (SAFETENSORS, PICKLE), True: (SAFETENSORS,), False: (PICKLE,)}[use_safetensors]
    for kind in kinds:
        if (whole := find(name_or_path, kind, hub)) is not None:
            return _READERS[kind](whole)
        if (index := find(name_or_path, _index_of(kind), hub)) is not None:
            return _read_shards(name_or_path, index, kind, hub)
    return _READERS[kinds[0]](locate(name_or_path, kinds[0], hub))  # which says why there is none


def _index_of(kind: str) -> str:
    return f"{kind}.index.json"


def _read_shards(name_or_path: StrPath, index: Path, kind: str, hub: HubOptions) -> dict[str, Tensor]:
    try:
        weight_map: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        filenames = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of weights ({error!r}): expected a weight_map") from error
    tensors: dict[str, Tensor] = {}
    for filename in filenames:
        if Path(filename).name != filename:
            raise CheckpointError(f"{index} names {filename!r}: expected a file beside it")
        tensors.update(_READERS[kind](locate(name_or_path, filename, hub)))
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {what_is(path)} ({error}). {_EXPECTED.format(kind='safetensors')}") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: {what_is(path)} ({reason}). {_EXPECTED.format(kind=PICKLE)}") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds more than tensors by name: expected a state dict")
    return dict(content)


_READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {SAFETENSORS: _read_safetensors, PICKLE: _read_pickle}


def split_weights(
    tensors: Mapping[str, Tensor], *, max_shard_size: int | str | None, safe: bool = True
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any] | None]:
    """Distributes tensors over files.

    Args:
        tensors: Tensors by name.
        max_shard_size: Bytes of a file, or a text such as ``"5GB"`` or ``"200KB"``; None for one file. A tensor that is
            larger has a file of its own.
        safe: Whether they are safetensors, or ``pytorch_model.bin``.

    Returns:
        The tensors of each file, and the content of the index, which is None for a single file.

    Raises:
        ValueError: ``max_shard_size`` is malformed.
    """
    kind = SAFETENSORS if safe else PICKLE
    limit = None if max_shard_size is None else parse_size(max_shard_size)
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if limit is not None and shards[-1] and filled + tensor.nbytes > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    if len(shards) == 1:
        return {kind: shards[0]}, None
    stem, suffix = kind.split(".")
    files = {f"{stem}-{i:05d}-of-{len(shards):05d}.{suffix}": shard for i, shard in enumerate(shards, start=1)}
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {name: file for file, shard in files.items() for name in shard},
    }
    return files, index


def parse_size(size: int | str) -> int:
    """Bytes, from a number or from a text such as ``"5GB"`` or ``"200KiB"``."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?\s*", str(size).upper())
    if match is None or float(match[1]) == 0:
        raise ValueError(f"size {size!r}: expected bytes, or a text such as '5GB'")
    unit = 1024 ** "KMGT".find(match[2]) * 1024 if match[3] else _UNITS[match[2]]
    return int(float(match[1]) * unit)


def write_weights(path: Path, tensors: Mapping[str, Tensor], *, safe: bool) -> None:
    """Writes one file."""
    if safe:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    else:
        torch.save(dict(tensors), path)


def stale_weights(folder: Path, *, kept: Mapping[str, Any]) -> list[Path]:
    """Files of weights in a folder that an earlier model left and a reader would take for part of this one."""
    pattern = re.compile(r"(model|pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?")
    return [file for file in folder.glob("*") if pattern.fullmatch(file.name) and file.name not in kept]
