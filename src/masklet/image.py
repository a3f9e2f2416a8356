"""One image: encode it once, prompt it often."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from masklet import checkpoints
from masklet.atomic import replacing
from masklet.config import STRIDES, SizeHW
from masklet.detection import DEFAULT_THRESHOLD, Detections, Detector, Words
from masklet.engine import Engine
from masklet.errors import CheckpointError, PromptError
from masklet.masks import upscaled_masks
from masklet.model.fingerprint import fingerprint
from masklet.model.neck import Features
from masklet.model.prompt_encoder import Prompts
from masklet.model.sam2 import Sam2Model
from masklet.numbers import size_of
from masklet.processing import ImageProcessor
from masklet.prompts import one_or_more_boxes, read_prompts
from masklet.results import CandidateMasks, Masks
from masklet.results.masks import read_only
from masklet.results.predictions import PredictedBatch, PredictionOptions
from masklet.results.visualisation import notebook_html, notebook_png

OBJECTS_PER_BATCH = 32
"""Objects decoded in one batch: enough to fill a processor. Only their low-resolution logits are held at the same
time."""

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
    def encode(cls, engine: Engine, image: np.ndarray, processor: ImageProcessor) -> EncodedImage:
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
        packed: bool = False,
        text: Words | None = None,
        detector: Any = None,
        detection_threshold: float = DEFAULT_THRESHOLD,
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
        packed: Literal[False] = False,
        text: Words | None = None,
        detector: Any = None,
        detection_threshold: float = DEFAULT_THRESHOLD,
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
        packed: bool = False,
        text: Words | None = None,
        detector: Any = None,
        detection_threshold: float = DEFAULT_THRESHOLD,
        fill_holes: int = 0,
        remove_islands: int = 0,
    ) -> Masks | CandidateMasks:
        """Predicts one mask for each prompted object.

        Coordinates are pixels of the original image, x right and y down.

        Args:
            points: [(x, y), …] on one object, or one such list for each object; (x, y, 0) is a point that is not on it.
            labels: Nested as the points: 1 on the object, 0 not on it. All 1 if None.
            box: (x0, y0, x1, y1) around one object; [[x0, y0, x1, y1]] is the same.
            boxes: One box for each object. There may be none: an empty list or an array (0, 4), for example from a
                detector that found nothing, gives empty ``Masks``. So do points of shape (0, points, 2).
            mask: A rough mask to refine, one for each object: the ``logits`` of an earlier result, or a mask of the
                image's size, binary or soft (floats from 0 to 1, or grey values in uint8).
            multimask: Whether the network proposes three masks for each object (whole, part, subpart), of which the one
                with the highest predicted IoU is returned. If None, it does so only for a single click, which is
                ambiguous.
            candidates: Whether to return all three masks of each object instead of the best one.
            packed: Whether to keep the masks as run lengths (``masklet.masks.PackedMasks``), without logits, so that
                thousands of masks of a large image fit in memory. It cannot be combined with ``candidates``.
            text: Words, such as "a truck" or ["car", "person"]: what a detector finds becomes boxes.
            detector: Finds words; see ``masklet.detection``. None loads Grounding DINO from the Hugging Face Hub.
            detection_threshold: Least score of a detection, 0 to 1.
            fill_holes: Holes that have fewer pixels are filled.
            remove_islands: Islands that have fewer pixels are removed, but never the largest.

        Returns:
            ``Masks``, one for each object, in the order of the prompts; with ``candidates=True``, ``CandidateMasks``.
            With ``text``, they have ``labels``, and go from high to low scores of the detector. There may be none.

        Raises:
            PromptError: The prompts are invalid or do not fit together.
            DetectorError: The detector cannot be loaded, or returns something else than detections.
        """
        names = None
        if text is not None or detector is not None:
            if not (points is None and labels is None and box is None and boxes is None and mask is None):
                raise PromptError("text came with points, boxes or a mask: expected one or the other")
            found = self._detect(text, detector, detection_threshold)
            boxes, names = found.boxes, np.array(found.labels, np.str_)
        options = PredictionOptions(
            multimask=multimask,
            candidates=candidates,
            packed=packed,
            fill_holes=fill_holes,
            remove_islands=remove_islands,
        )
        boxes = one_or_more_boxes(box, boxes)
        prompts = read_prompts(points, labels, boxes, mask, size_hw=self.size_hw, input_hw=self.input_hw)
        height, width = (side // STRIDES[0] for side in self.input_hw)
        with torch.inference_mode():
            return options.collect(
                self._decode(prompts, options),
                len(prompts),
                size_hw=self.size_hw,
                logits_hw=(height, width),
                image=self.image,
                names=names,
            )

    def _detect(self, text: Words | None, detector: Any, threshold: float) -> Detections:
        if text is None:
            raise PromptError("detector came without text: expected the words to look for, such as text='a truck'")
        if self.image is None:
            raise PromptError("this encoded image was loaded from a file and has no pixels, which text needs")
        return Detector(detector, text, threshold=threshold)(self.image)

    def _decode(self, prompts: Prompts, options: PredictionOptions) -> Iterator[PredictedBatch]:
        """The best candidate of each object, or all candidates, object by object, in batches of objects."""
        multimask = options.proposes_three(is_single_click=prompts.is_single_click)
        for start in range(0, len(prompts), OBJECTS_PER_BATCH):
            batch = prompts[start : start + OBJECTS_PER_BATCH].to(self.engine.device)
            decoded = self.engine.decode(self.features, batch, multimask=multimask)
            logits, iou_scores = decoded.logits[0].float(), decoded.iou_scores[0].float()
            if options.candidates:
                logits, iou_scores = logits.flatten(0, 1), iou_scores.flatten()
            else:  # before upscaling, which takes most of the time and memory
                chosen = torch.arange(len(logits), device=logits.device), iou_scores.argmax(1)
                logits, iou_scores = logits[chosen], iou_scores[chosen]
            kept = None if options.packed else logits.cpu().numpy()
            yield PredictedBatch(kept, iou_scores.cpu().numpy(), upscaled_masks(logits, self.size_hw))

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
        if metadata.get("encoder") != encoder_fingerprint(engine.model):
            raise CheckpointError(
                f"{path} was encoded by another model than the one that is loaded: load that model, or encode the "
                "image again"
            )
        check_features(tensors, engine.config.hidden_size, path)
        try:
            size = [int(metadata[side]) for side in ("height", "width")]
        except (KeyError, ValueError):
            size = []
        size_hw = size_of(f"the size of the image in {path}", size, CheckpointError)
        return cls(engine, Features(*(t.to(engine.dtype) for t in tensors)), size_hw, None)


def check_features(tensors: Sequence[Tensor], dim: int, path: str | os.PathLike[str]) -> None:
    """Raise a CheckpointError unless these are ``Features`` of one image, of a network with ``dim`` channels."""
    coarsest = tensors[-1].shape
    h, w = coarsest[-2:] if len(coarsest) == 4 else (0, 0)
    expected = [(1, dim // 8, 4 * h, 4 * w), (1, dim // 4, 2 * h, 2 * w), (1, dim, h, w)]
    found = [tuple(tensor.shape) for tensor in tensors]
    if found != expected or not h * w or h % 2 or w % 2 or not all(map(checkpoints.is_finite, tensors)):
        raise CheckpointError(
            f"{path} holds no encoded image: maps of {found} with finite numbers are not those of a network with {dim} "
            "channels. Encode the image again"
        )


def encoder_fingerprint(model: Sam2Model) -> str:
    """Hex digits that differ between models with different embeddings."""
    encoders = (model.vision_encoder, model.mask_decoder.conv_s0, model.mask_decoder.conv_s1)
    weights = [*(t for encoder in encoders for t in encoder.state_dict().values())]
    return fingerprint(model.config, weights)
