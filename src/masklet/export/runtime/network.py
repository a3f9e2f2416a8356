"""An exported network: the four functions of an engine on arrays, run by onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from masklet.config import NOT_A_POINT
from masklet.errors import CheckpointError, ConfigError, DeviceError
from masklet.export.manifest import FINGERPRINT_KEY, GLUE, Manifest, read_manifest
from masklet.numbers import shown

STABILITY_DELTA, STABILITY_THRESHOLD = 0.05, 0.98
"""As in ``masklet.model.mask_decoder``."""
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "directml": "DmlExecutionProvider",
}
Options = Mapping[str, Any]


@dataclass(frozen=True)
class ImageFeatures:
    """An encoded image."""

    stride4: np.ndarray  # (1, dim / 8, 4h, 4w)
    stride8: np.ndarray  # (1, dim / 4, 2h, 2w)
    stride16: np.ndarray  # (1, dim, h, w), before anything is added to it
    image_embedding: np.ndarray  # (1, dim, h, w), to decode without memory


@dataclass(frozen=True)
class Decoded:
    """What the network predicts for every object; see ``masklet.model.mask_decoder.DecodedMasks``."""

    logits: np.ndarray  # (batch, objects, masks, 4h, 4w)
    iou_scores: np.ndarray  # (batch, objects, masks)
    object_scores: np.ndarray  # (batch, objects, 1)
    object_pointers: np.ndarray  # (batch, objects, masks, dim)


class OnnxNetwork:
    """The graphs of a folder that ``to_onnx`` wrote in the layout ``masklet``. Thread-safe.

    Args:
        folder: The folder.
        provider: ``"cpu"``, ``"cuda"``, ``"tensorrt"``, ``"coreml"``, ``"openvino"`` or ``"directml"``, or the name of
            an execution provider; operators that it lacks run on the CPU.
        provider_options: Options of the provider, as onnxruntime takes them.
        threads: Number of CPU threads; None for as many as there are cores.

    Raises:
        CheckpointError: The folder is not an export, or is damaged, or its graphs are of different networks.
        DeviceError: The provider is not available.
        ModuleNotFoundError: onnxruntime is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        provider: str = "cpu",
        provider_options: Options | None = None,
        threads: int | None = None,
    ) -> None:
        if find_spec("onnxruntime") is None:
            raise ModuleNotFoundError(
                "engine 'onnx' needs onnxruntime, which is not installed: pip install onnxruntime", name="onnxruntime"
            )
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        self.providers = _find_providers(provider, provider_options)
        self._sessions = {name: self._open(str(entry["file"]), threads) for name, entry in self.manifest.graphs.items()}
        self._glue = self._read_glue() if self.manifest.has_memory else {}

    @property
    def pads_memory(self) -> bool:
        """Whether to pad memory to a few fixed shapes: providers other than the CPU's compile a graph for each."""
        return self.providers[0][0] != PROVIDERS["cpu"]

    def encode(self, pixel_values: np.ndarray) -> ImageFeatures:
        """Encode an image, (1, 3, height, width), normalised."""
        return ImageFeatures(*self._run("image_encoder", pixel_values=pixel_values))

    def decode(
        self,
        features: ImageFeatures,
        points: np.ndarray | None,
        labels: np.ndarray | None,
        *,
        multimask: bool,
        mask_input: np.ndarray | None = None,
        conditioned: np.ndarray | None = None,
    ) -> Decoded:
        """Decode prompts.

        Args:
            features: Features of the image.
            points: (batch, objects, points, 2); None for objects that are tracked, or have a mask alone.
            labels: (batch, objects, points) int64.
            multimask: Whether to return three candidates, or one mask.
            mask_input: (4h, 4w) logits to refine, for all objects.
            conditioned: (batch, dim, h, w), as from ``read_memory``.
        """
        embedding = features.image_embedding if conditioned is None else conditioned
        if points is None or labels is None or not labels.shape[2]:
            points = np.zeros((len(embedding), 1, 1, 2), np.float32)
            labels = np.full((len(embedding), 1, 1), NOT_A_POINT, np.int64)
        logits_hw = features.stride4.shape[-2:]
        masks = np.zeros(logits_hw, np.float32) if mask_input is None else mask_input.astype(np.float32)
        decoded = Decoded(
            *self._run(
                "prompt_decoder",
                stride4=features.stride4,
                stride8=features.stride8,
                image_embedding=embedding,
                points=points,
                labels=labels,
                mask_input=masks[None, None],
                has_mask=np.array([mask_input is not None], np.float32),
            )
        )
        return candidates_of(decoded) if multimask else single_of(decoded, self.manifest.replaces_unstable)

    def read_memory(
        self,
        features: ImageFeatures,
        maps: np.ndarray,
        map_slots: np.ndarray,
        pointers: np.ndarray,
        pointer_distances: np.ndarray,
        is_empty: np.ndarray,
    ) -> np.ndarray:
        """Condition a frame on memory, (objects, dim, h, w); see ``masklet.model.memory_attention.Memory``."""
        (conditioned,) = self._run(
            "memory_attention",
            stride16=features.stride16,
            maps=maps,
            map_slots=map_slots,
            pointers=pointers,
            pointer_distances=pointer_distances,
            is_empty=is_empty,
        )
        return conditioned

    def write_memory(
        self, features: ImageFeatures, logits: np.ndarray, object_scores: np.ndarray, *, is_prompted: bool
    ) -> np.ndarray:
        """Encode masks (objects, 4h, 4w) and scores (objects, 1) as memory maps, (objects, tokens, memory_dim)."""
        (memory,) = self._run(
            "memory_encoder",
            stride16=features.stride16,
            logits=logits,
            object_scores=object_scores,
            is_prompted=np.array([is_prompted], np.float32),
        )
        return memory

    def downsample_mask(self, mask: np.ndarray) -> np.ndarray:
        """(height, width) bool to (height / 4, width / 4), the learned mask prompt of a mask that is given."""
        weight, bias = self._glue["mask_downsample.weight"][0, 0], self._glue["mask_downsample.bias"]
        side = weight.shape[0]
        cells = mask.reshape(mask.shape[0] // side, side, mask.shape[1] // side, side).astype(np.float32)
        return np.einsum("hiwj,ij->hw", cells, weight) + bias

    def _run(self, graph: str, **inputs: np.ndarray) -> Sequence[np.ndarray]:
        return self._sessions[graph].run(None, inputs)

    def _path(self, file: str) -> Path:
        path = self.folder / file
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: export the model again")
        return path

    def _read_glue(self) -> dict[str, np.ndarray]:
        """The few weights that no graph holds."""
        path = self._path(GLUE)
        try:
            tensors = load_file(path)
            weight, bias = tensors["mask_downsample.weight"], tensors["mask_downsample.bias"]
        except (SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(f"cannot load {path}: {error}. It may be damaged: export the model again") from error
        if weight.shape != (1, 1, *weight.shape[2:3] * 2) or bias.shape != (1,):
            raise CheckpointError(f"{path} is damaged: the shapes of its tensors are wrong. Export the model again")
        return tensors

    def _open(self, file: str, threads: int | None) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        if threads is not None:
            options.intra_op_num_threads = threads
        path = self._path(file)
        names, settings = (list(column) for column in zip(*self.providers, strict=True))
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=names, provider_options=settings)
        except Exception as error:  # onnxruntime's errors have no common class
            raise CheckpointError(f"cannot load {path}: {error}. It may be damaged: export the model again") from error
        found = session.get_modelmeta().custom_metadata_map.get(FINGERPRINT_KEY)
        if found != self.manifest.fingerprint:
            raise CheckpointError(
                f"{path} is of another model ({found}) than {self.folder}'s manifest ({self.manifest.fingerprint}): "
                "export the model again into a folder of its own"
            )
        return session


def candidates_of(decoded: Decoded) -> Decoded:
    """The three candidates, without the single mask."""
    return replace(
        decoded,
        logits=decoded.logits[:, :, 1:],
        iou_scores=decoded.iou_scores[:, :, 1:],
        object_pointers=decoded.object_pointers[:, :, 1:],
    )


def single_of(decoded: Decoded, replaces_unstable: bool) -> Decoded:
    """The single mask, or where it is unstable the best candidate; see ``masklet.model.mask_decoder``."""
    single = decoded.logits[:, :, 0]
    choice = np.zeros(single.shape[:2], np.intp)
    if replaces_unstable:
        strict = (single > STABILITY_DELTA).sum((-2, -1)).astype(np.float32)
        loose = (single > -STABILITY_DELTA).sum((-2, -1)).astype(np.float32)
        is_stable = np.where(loose > 0, strict / np.maximum(loose, 1), 1) >= STABILITY_THRESHOLD
        choice = np.where(is_stable, 0, 1 + decoded.iou_scores[:, :, 1:].argmax(-1))
    return replace(
        decoded,
        logits=np.take_along_axis(decoded.logits, choice[:, :, None, None, None], 2),
        iou_scores=np.take_along_axis(decoded.iou_scores, choice[:, :, None], 2),
        object_pointers=decoded.object_pointers[:, :, :1],
    )


def _find_providers(provider: Any, options: Options | None) -> list[tuple[str, dict[str, Any]]]:
    """The execution providers, the CPU's last, with their options."""
    import onnxruntime

    if not isinstance(provider, str):
        raise ConfigError(f"provider is {shown(provider)}: expected one of {', '.join(PROVIDERS)}")
    name = PROVIDERS.get(provider.lower(), provider)
    if name not in (available := onnxruntime.get_available_providers()):
        raise DeviceError(
            f"provider {provider!r} is not available: this onnxruntime {onnxruntime.__version__} has "
            f"{', '.join(available)}. Others come with other builds, such as onnxruntime-gpu"
        )
    chosen = [(name, dict(options or {}))]
    return chosen if name == PROVIDERS["cpu"] else [*chosen, (PROVIDERS["cpu"], {})]
