"""One image: encode it once, prompt it often."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from masklet.atomic import replacing
from masklet.config import STRIDES, SizeHW
from masklet.engine import Engine
from masklet.errors import CheckpointError, PromptError
from masklet.masks import clean_masks, upscale_logits
from masklet.model.fingerprint import fingerprint
from masklet.model.neck import Features
from masklet.model.prompt_encoder import Prompts
from masklet.model.sam2 import Sam2Model
from masklet.processing import Sam2ImageProcessor
from masklet.prompts import read_prompts
from masklet.results import CandidateMasks, Masks
from masklet.results.masks import read_only
from masklet.results.visualisation import notebook_html, notebook_png

OBJECTS_PER_BATCH = 32
"""Objects decoded together: enough to fill a processor, few enough that their full-size masks fit in memory."""

FORMAT = "masklet-encoded-image-1"


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An encoded image. It is immutable and thread-safe."""

    engine: Engine
    features: Features  # batch 1
    size_hw: SizeHW  # of the original image
    image: np.ndarray | None  # (height, width, 3) uint8; None for an encoded image that was loaded from a file

    def __post_init__(self) -> None:
        if self.image is not None:
            object.__setattr__(self, "image", read_only(self.image))

    @property
    def input_hw(self) -> SizeHW:
        """(height, width) of the network's input."""
        finest = self.features.stride4
        return finest.shape[-2] * STRIDES[0], finest.shape[-1] * STRIDES[0]

    def __repr__(self) -> str:
        height, width = self.size_hw
        return f"EncodedImage({width}×{height}, encoded at {self.input_hw[1]}×{self.input_hw[0]})"

    def _repr_png_(self) -> bytes | None:
        """For notebooks: the image, if there is one."""
        return None if self.image is None else notebook_png(Image.fromarray(self.image))

    def _repr_html_(self) -> str:
        return notebook_html(self._repr_png_(), repr(self))

    @classmethod
    def encode(cls, engine: Engine, image: np.ndarray, processor: Sam2ImageProcessor) -> EncodedImage:
        """Runs the image encoder on (height, width, 3) uint8 RGB."""
        with torch.inference_mode():
            features = engine.encode(processor.pixel_values(image))
        return cls(engine, features, (image.shape[0], image.shape[1]), image)

    @overload
    def predict(
        self,
        points: Any = None,
        labels: Any = None,
        *,
        box: Any = None,
        boxes: Any = None,
        mask: Any = None,
        multimask: bool | None = None,
        candidates: Literal[False] = False,
        fill_holes: int = 0,
        remove_islands: int = 0,
    ) -> Masks: ...

    @overload
    def predict(
        self,
        points: Any = None,
        labels: Any = None,
        *,
        box: Any = None,
        boxes: Any = None,
        mask: Any = None,
        multimask: bool | None = None,
        candidates: Literal[True],
        fill_holes: int = 0,
        remove_islands: int = 0,
    ) -> CandidateMasks: ...

    def predict(
        self,
        points: Any = None,
        labels: Any = None,
        *,
        box: Any = None,
        boxes: Any = None,
        mask: Any = None,
        multimask: bool | None = None,
        candidates: bool = False,
        fill_holes: int = 0,
        remove_islands: int = 0,
    ) -> Masks | CandidateMasks:
        """Predicts one mask for each prompted object.

        Coordinates are pixels of the original image, x right and y down.

        Args:
            points: [(x, y), …] on one object, or one such list for each object; (x, y, 0) is a point beside it.
            labels: Nested as the points: 1 on the object, 0 beside it. All 1 if None.
            box: (x0, y0, x1, y1) around one object.
            boxes: One box for each object.
            mask: A rough mask to refine, one for each object: the ``logits`` of an earlier result, or a binary mask of
                the image's size.
            multimask: Whether the network proposes three masks for each object (whole, part, subpart), of which the
                one of the highest predicted IoU is returned. If None: only for a single click, which is ambiguous.
            candidates: Whether to return all three masks of each object instead of the best one.
            fill_holes: Holes of fewer pixels are filled.
            remove_islands: Islands of fewer pixels are removed, but never the largest.

        Returns:
            ``Masks``, one for each object, in the order of the prompts; with ``candidates=True``, ``CandidateMasks``.

        Raises:
            PromptError: The prompts are invalid or do not fit together.
        """
        if box is not None and boxes is not None:
            raise PromptError("box and boxes were both given: expected box for one object, or boxes for several")
        if candidates and multimask is False:
            raise PromptError("candidates=True returns three masks for each object: multimask=False allows only one")
        prompts = read_prompts(
            points,
            labels,
            boxes if box is None else [box],
            mask,
            size_hw=self.size_hw,
            input_hw=self.input_hw,
        )
        if multimask is None:
            multimask = candidates or prompts.is_single_click
        batches = [
            self._predict_batch(prompts[start : start + OBJECTS_PER_BATCH], multimask, best_only=not candidates)
            for start in range(0, len(prompts), OBJECTS_PER_BATCH)
        ]
        masks, logits, iou_scores = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        cleaned = clean_masks(masks.reshape(-1, *self.size_hw), fill_holes=fill_holes, remove_islands=remove_islands)
        found = CandidateMasks(cleaned.reshape(masks.shape), logits, iou_scores, self.image)
        return found if candidates else found.best

    @torch.inference_mode()
    def _predict_batch(
        self, prompts: Prompts, multimask: bool, *, best_only: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks, logits and predicted IoU as in ``CandidateMasks``, of the best candidate of each object or of all."""
        logits, iou_scores = self._decode(prompts, multimask)
        if best_only:  # before upscaling, which takes most of the memory
            chosen = torch.arange(len(logits), device=logits.device), iou_scores.argmax(1)
            logits, iou_scores = logits[chosen][:, None], iou_scores[chosen][:, None]
        masks = upscale_logits(logits, self.size_hw) > 0
        return masks.cpu().numpy(), logits.cpu().numpy(), iou_scores.cpu().numpy()

    def _decode(self, prompts: Prompts, multimask: bool) -> tuple[Tensor, Tensor]:
        """(objects, candidates, h, w) logits and (objects, candidates) predicted IoU, float32."""
        decoded = self.engine.decode(self.features, prompts.to(self.engine.device), multimask=multimask)
        return decoded.logits[0].float(), decoded.iou_scores[0].float()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves the encoded image as a safetensors file, for ``Segmenter.load_image`` of the same model.

        Raises:
            CheckpointError: The file cannot be written. An existing file is unchanged.
        """
        tensors = {name: t.cpu().contiguous() for name, t in self.features._asdict().items()}
        metadata = {
            "format": FORMAT,
            "height": str(self.size_hw[0]),
            "width": str(self.size_hw[1]),
            "encoder": encoder_fingerprint(self.engine.model),
        }
        try:
            with replacing(path) as unfinished:
                save_file(tensors, unfinished, metadata=metadata)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot save the image to {path}: {error}") from error

    @classmethod
    def load(cls, engine: Engine, path: str | os.PathLike[str]) -> EncodedImage:
        """Loads the file that ``save`` wrote, without encoding the image again.

        Raises:
            CheckpointError: The file is missing, damaged, of another kind, or was written with another encoder.
        """
        try:
            with safe_open(path, framework="pt", device=str(engine.device)) as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise CheckpointError(f"{path} is a safetensors file, but not an encoded image (EncodedImage.save)")
                tensors = [file.get_tensor(name) for name in Features._fields]
        except (OSError, SafetensorError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"cannot load {path} as an encoded image: {error}") from error
        if metadata["encoder"] != encoder_fingerprint(engine.model):
            raise CheckpointError(
                f"{path} was encoded by another model: expected the one that is loaded. Load that model, or encode the "
                "image again"
            )
        features = Features(*(t.to(engine.dtype) for t in tensors))
        return cls(engine, features, (int(metadata["height"]), int(metadata["width"])), None)


def encoder_fingerprint(model: Sam2Model) -> str:
    """Hex digits that differ between models with different embeddings."""
    encoders = (model.vision_encoder, model.mask_decoder.conv_s0, model.mask_decoder.conv_s1)
    weights = [*(t for encoder in encoders for t in encoder.state_dict().values())]
    return fingerprint(model.config, weights)
