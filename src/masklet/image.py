"""One image: encode once, prompt often."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

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
from masklet.results import Masks
from masklet.results.visualisation import notebook_html, notebook_png

OBJECTS_AT_ONCE = 32
"""Objects decoded together: enough to fill a processor, few enough that their full-size masks fit in memory."""

FORMAT = "masklet-encoded-image-1"


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An encoded image. It is a value: prompting it changes nothing, and threads may share it."""

    engine: Engine
    features: Features  # batch 1
    size_hw: SizeHW  # of the original image
    image: np.ndarray | None  # (height, width, 3) uint8; None for an image that was opened from a file

    def __post_init__(self) -> None:
        if self.image is not None:
            frozen = self.image.view()  # the caller's own array stays as writable as it was
            frozen.flags.writeable = False
            object.__setattr__(self, "image", frozen)

    @property
    def input_hw(self) -> SizeHW:
        """(height, width) of the network's input."""
        finest = self.features.stride4
        return finest.shape[-2] * STRIDES[0], finest.shape[-1] * STRIDES[0]

    def __repr__(self) -> str:
        height, width = self.size_hw
        return f"EncodedImage({width}×{height}, encoded at {self.input_hw[1]}×{self.input_hw[0]})"

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the image, if it was kept."""
        return None if self.image is None else notebook_png(Image.fromarray(self.image))

    def _repr_html_(self) -> str:
        return notebook_html(self._repr_png_(), repr(self))

    @classmethod
    def encode(cls, engine: Engine, image: np.ndarray, processor: Sam2ImageProcessor) -> EncodedImage:
        """Run the image encoder on (height, width, 3) uint8 RGB."""
        with torch.inference_mode():
            features = engine.encode(processor.pixel_values(image))
        return cls(engine, features, (image.shape[0], image.shape[1]), image)

    def predict(
        self,
        points: Any = None,
        labels: Any = None,
        *,
        box: Any = None,
        boxes: Any = None,
        mask: Any = None,
        multimask: bool | None = None,
        fill_holes: int = 0,
        remove_islands: int = 0,
    ) -> Masks:
        """Masks of the prompted objects.

        Coordinates are pixels of the original image, x right and y down.

        Args:
            points: [(x, y), …] on one object, or one such list for each object; (x, y, 0) is a point beside it.
            labels: Nested as the points: 1 on the object, 0 beside it. All 1 if None.
            box: (x0, y0, x1, y1) around one object.
            boxes: One box for each object.
            mask: A rough mask to improve, one for each object: the ``logits`` of an earlier result, or a plain mask of
                the image's size.
            multimask: Three candidates for each object (whole, part, subpart) instead of one mask. If None: for a
                single click alone, which may mean any of them.
            fill_holes: Fill holes of fewer pixels.
            remove_islands: Remove islands of fewer pixels, but never the largest.

        Returns:
            Masks, objects in the order given; the candidates of an object follow each other.

        Raises:
            PromptError: The prompts make no sense, alone or together.
        """
        if box is not None and boxes is not None:
            raise PromptError("box and boxes were both given: expected box for one object, or boxes for several")
        prompts = read_prompts(
            points,
            labels,
            boxes if box is None else [box],
            mask,
            size_hw=self.size_hw,
            input_hw=self.input_hw,
        )
        return self._decode(
            prompts, prompts.is_single_click if multimask is None else multimask, fill_holes, remove_islands
        )

    @torch.inference_mode()
    def _decode(self, prompts: Prompts, multimask: bool, fill_holes: int, remove_islands: int) -> Masks:
        masks, logits, scores = [], [], []
        for start in range(0, len(prompts), OBJECTS_AT_ONCE):
            part = prompts[start : start + OBJECTS_AT_ONCE].to(self.engine.device)
            decoded = self.engine.decode(self.features, part, multimask=multimask)
            low_res = decoded.logits[0].float()  # (objects, masks, h, w)
            masks.append((upscale_logits(low_res, self.size_hw) > 0).flatten(0, 1).cpu().numpy())
            logits.append(low_res.flatten(0, 1).cpu().numpy())
            scores.append(decoded.iou_scores[0].float().flatten().cpu().numpy())
        cleaned = clean_masks(np.concatenate(masks), fill_holes=fill_holes, remove_islands=remove_islands)
        objects = np.repeat(np.arange(len(prompts)), len(cleaned) // len(prompts))
        return Masks(cleaned, np.concatenate(logits), np.concatenate(scores), objects, self.image)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Keep the encoded image as a safetensors file, to be opened by ``Segmenter.open`` of the same model.

        Raises:
            CheckpointError: It cannot be written; an older file there is as it was.
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
    def open(cls, engine: Engine, path: str | os.PathLike[str]) -> EncodedImage:
        """Open what ``save`` wrote; nothing is encoded again.

        Raises:
            CheckpointError: Not such a file, or written with another encoder.
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
            raise CheckpointError(f"cannot open {path} as an encoded image: {error}") from error
        if metadata["encoder"] != encoder_fingerprint(engine.model):
            raise CheckpointError(
                f"{path} was encoded by another model: expected the one that is loaded. Load that model, or encode the "
                "image again"
            )
        features = Features(*(t.to(engine.dtype) for t in tensors))
        return cls(engine, features, (int(metadata["height"]), int(metadata["width"])), None)


def encoder_fingerprint(model: Sam2Model) -> str:
    """A few hex digits that differ between models whose embeddings differ."""
    encoders = (model.vision_encoder, model.mask_decoder.conv_s0, model.mask_decoder.conv_s1)
    weights = [*(t for encoder in encoders for t in encoder.state_dict().values())]
    return fingerprint(model.config, weights)
