"""The models of the zoo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fiftyone.core.labels import Detection, Detections, Keypoints
from fiftyone.core.models import Model, SamplesMixin

import masklet
from masklet import Masks, Segmenter
from masklet.config import SizeHW
from masklet.errors import PromptError
from masklet.masks import patches

LABEL = "object"
"""Label of objects that were found without a prompt."""
PROMPT_FIELD = "prompt_field"


def download_model(model_name: str, model_path: str) -> None:
    """Called by FiftyOne. Leaves a mark: weights are found by ``masklet.load``."""
    Path(model_path).write_text("masklet\n")


def load_model(
    model_name: str, model_path: str, model: str | None = None, device: str = "auto", **options: Any
) -> Model:
    """Called by FiftyOne.

    Args:
        model_name: "masklet-image" or "masklet-video".
        model_path: Not needed.
        model: Name of the model, as for ``masklet.load``; the embedded model if None.
        device: As for ``masklet.load``.
        options: Options of ``Segmenter.everything``, for images without prompts.
    """
    segmenter = masklet.load(model, device)
    return VideoModel(segmenter) if "video" in model_name else ImageModel(segmenter, options)


class PromptedModel(SamplesMixin, Model):  # type: ignore[misc]
    """What both models share. ``apply_model(..., prompt_field=...)`` names the field that holds the prompts."""

    def __init__(self, segmenter: Segmenter) -> None:
        SamplesMixin.__init__(self)
        self.segmenter = segmenter

    @property
    def ragged_batches(self) -> bool:
        """Images of a batch may differ in size."""
        return True

    @property
    def transforms(self) -> None:
        """None: the model reads images as they are."""
        return None

    @property
    def preprocess(self) -> bool:
        """Nothing is done to images beforehand."""
        return False

    @preprocess.setter
    def preprocess(self, value: bool) -> None:
        pass

    @property
    def prompt_field(self) -> str | None:
        """The field of the prompts, without ``frames.``."""
        field = self.needs_fields.get(PROMPT_FIELD)
        return None if field is None else str(field).removeprefix("frames.")


class ImageModel(PromptedModel):
    """Segments what is in boxes or at keypoints, or finds all objects.

    Args:
        segmenter: The model.
        options: Options of ``Segmenter.everything``.
    """

    def __init__(self, segmenter: Segmenter, options: dict[str, Any]) -> None:
        super().__init__(segmenter)
        self.options = options

    @property
    def media_type(self) -> str:
        """Media type of the samples."""
        return "image"

    def predict(self, arg: np.ndarray, sample: Any = None) -> Detections:
        """The objects of one image, (height, width, 3) uint8."""
        prompts = None if self.prompt_field is None or sample is None else sample.get_field(self.prompt_field)
        if self.prompt_field is None:
            return detections(self.segmenter.everything(arg, **self.options))
        image = self.segmenter.image(arg)
        if isinstance(prompts, Keypoints):
            return of_keypoints(image, prompts)
        given = () if prompts is None else prompts.detections
        boxes = [pixels(detection.bounding_box, image.size_hw) for detection in given]
        return detections(image.predict(boxes=boxes), [detection.label for detection in given])


class VideoModel(PromptedModel):
    """Tracks boxes that are given in some frames of a video. A box whose ``index`` came before corrects that object."""

    @property
    def media_type(self) -> str:
        """Media type of the samples."""
        return "video"

    def predict(self, arg: Any, sample: Any = None) -> dict[int, Detections]:
        """The objects of each frame, counted from 1.

        Args:
            arg: FiftyOne's reader of the video.
            sample: The sample, with boxes in the field of frames that ``prompt_field`` names.

        Raises:
            PromptError: There is no prompt.
        """
        session = self.segmenter.video(arg.inpath)
        labels: dict[int, str] = {}
        for frame, index, detection in video_prompts(sample, self.prompt_field):
            session.prompt(frame - 1, index, box=pixels(detection.bounding_box, session.video.size_hw))
            labels[index] = detection.label
        if not labels:
            raise PromptError('no frame has a box: expected prompt_field="frames.FIELD" with Detections in some frames')
        found = {}
        for result in session.track(start=0):
            rows = zip(labels, result.visible, strict=True)
            indices = [index for index, is_visible in rows if is_visible]
            found[result.index + 1] = detections(
                result.masks[result.visible], [labels[index] for index in indices], indices
            )
        return found


def video_prompts(sample: Any, field: str | None) -> Iterator[tuple[int, int, Detection]]:
    """Frame, object and box of each prompt, in the order of frames. Boxes without an index are objects of their own."""
    if field is None or sample is None:
        return
    unnamed = 1_000_000
    for number, frame in sorted(sample.frames.items()):
        boxes = frame.get_field(field)
        for detection in () if boxes is None else boxes.detections:
            unnamed += 1
            yield number, unnamed if detection.index is None else int(detection.index), detection


def of_keypoints(image: Any, prompts: Keypoints) -> Detections:
    """An object for each ``Keypoint``, whose points are all on it."""
    height, width = image.size_hw
    found: list[Detection] = []
    for keypoint in prompts.keypoints:
        points = [(x * width, y * height) for x, y in keypoint.points if np.isfinite((x, y)).all()]
        found += detections(image.predict(points), [keypoint.label]).detections
    return Detections(detections=found)


def pixels(box: list[float], size_hw: SizeHW) -> tuple[float, float, float, float]:
    """FiftyOne's box, x y width height from 0 to 1, as x0 y0 x1 y1 in pixels."""
    (x, y, w, h), (height, width) = box, size_hw
    return x * width, y * height, (x + w) * width, (y + h) * height


def detections(masks: Masks, labels: list[str] | None = None, indices: list[int] | None = None) -> Detections:
    """Masks as FiftyOne's detections: each cropped to its box. Empty masks are left out."""
    height, width = masks.size_hw
    found = []
    for number, (patch, score) in enumerate(zip(patches(masks.masks), masks.iou_scores.tolist(), strict=True)):
        if not patch.inside.size:
            continue
        (x0, y0), (rows, columns) = patch.corner_xy, patch.inside.shape
        found.append(
            Detection(
                label=LABEL if labels is None else labels[number],
                bounding_box=[x0 / width, y0 / height, columns / width, rows / height],
                mask=patch.inside.copy(),
                confidence=score,
                **({} if indices is None else {"index": indices[number]}),
            )
        )
    return Detections(detections=found)
