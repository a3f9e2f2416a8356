"""Objects found by words: a detector gives boxes, which become prompts.

A detector is one of

- the name of a zero-shot detector on the Hugging Face Hub, or a folder of one (``pip install masklet[text]``);
- ``(model, processor)`` of transformers, as ``load_detector`` loads them;
- a transformers pipeline for "zero-shot-object-detection";
- any callable that takes an image, (height, width, 3) uint8, and a list of words, and returns boxes, scores and labels:
  three sequences, a list of dicts as pipelines return them, ``Detections``, or supervision's ``Detections``.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

from masklet.errors import ConfigError, DetectorError, PromptError
from masklet.masks import box_nms
from masklet.numbers import real_number, shown

DEFAULT_DETECTOR = "IDEA-Research/grounding-dino-tiny"
"""The detector that is loaded if none is given."""
DEFAULT_THRESHOLD = 0.3
"""Least score of a detection."""
TEXT_THRESHOLD = 0.25
"""Grounding DINO: the least score of a part of a word that counts as found, its authors' value."""
SAME_BOX_IOU = 0.7
"""Boxes of one word that overlap more than this are one object."""

Words: TypeAlias = str | Sequence[str]
Detect: TypeAlias = Callable[[np.ndarray, list[str]], Any]


@dataclass(frozen=True)
class Detections:
    """What a detector finds in an image."""

    boxes: np.ndarray
    """(detections, 4) float32: x0, y0, x1, y1 in pixels of the image."""
    scores: np.ndarray
    """(detections,) float32, 0 to 1."""
    labels: tuple[str, ...]
    """The word of each detection."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: np.ndarray) -> Detections:
        """The detections of these indices."""
        return Detections(self.boxes[chosen], self.scores[chosen], tuple(self.labels[index] for index in chosen))


def load_detector(name: str | os.PathLike[str] = DEFAULT_DETECTOR, *, device: str = "cpu") -> tuple[Any, Any]:
    """Loads a zero-shot detector of transformers: Grounding DINO, OWLv2, OmDet and others.

    Args:
        name: Name of a Hub repository, or a folder.
        device: Where it runs.

    Returns:
        (model, processor), to be passed as ``detector=``: loaded once, used often.

    Raises:
        DetectorError: transformers is not installed; the detector cannot be found, or not without a network.
    """
    try:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor
    except ImportError as error:
        raise DetectorError(
            f"detector {str(name)!r} needs the package transformers: pip install 'masklet[text]', or pass a callable"
        ) from error
    try:
        if not os.path.isdir(name):
            # First, since transformers would try for a minute to reach the Hub, file by file.
            hf_hub_download(str(name), "config.json")
        model = AutoModelForZeroShotObjectDetection.from_pretrained(name)
        processor: Any = AutoProcessor
        return model.eval().to(device), processor.from_pretrained(name)
    except LocalEntryNotFoundError as error:
        raise DetectorError(
            f"the detector {str(name)!r} is not in the local cache and the Hub cannot be reached. To work offline, "
            f"fetch it once where there is a network (hf download {name}), copy the folder here and give its path, or "
            "pass a callable"
        ) from error
    except (OSError, ValueError) as error:
        raise DetectorError(
            f"cannot load the detector {str(name)!r}: {str(error).splitlines()[0]} Expected a zero-shot detector on "
            "the Hugging Face Hub (which needs a network the first time), a folder, (model, processor), or a callable"
        ) from error


def read_words(text: Any) -> list[str]:
    """The words to look for, each once.

    Raises:
        PromptError: There are none, or they are not texts.
    """
    words = [text] if isinstance(text, str) else list(text) if isinstance(text, Sequence) else []
    if not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise PromptError(f"text is {shown(text)}: expected words, such as 'a truck' or ['car', 'person']")
    return list(dict.fromkeys(word.strip() for word in words))


class Detector:
    """Looks for words in images, with any kind of detector (see this module).

    Args:
        detector: None for ``DEFAULT_DETECTOR``.
        text: A word, or several.
        threshold: Least score of a detection.

    Raises:
        PromptError: ``text`` is not words; ``threshold`` is not a number from 0 to 1.
        ConfigError: ``detector`` is not a detector.
        DetectorError: It cannot be loaded.
    """

    def __init__(self, detector: Any, text: Words, *, threshold: float = DEFAULT_THRESHOLD) -> None:
        self.words = read_words(text)
        self.threshold = real_number("detection_threshold", threshold, PromptError, least=0, most=1)
        self._detect = as_function(DEFAULT_DETECTOR if detector is None else detector, self.threshold)

    def __call__(self, image: np.ndarray) -> Detections:
        """The objects in an image, (height, width, 3) uint8: from high to low scores, boxes within the image.

        Raises:
            DetectorError: The detector does not return boxes, scores and labels.
        """
        # A copy, since not every detector takes a read-only array.
        found = read_detections(self._detect(image.copy(), self.words), self.words)
        height, width = image.shape[:2]
        boxes = found.boxes.clip(0, np.array([width, height, width, height], np.float32))
        is_kept = (found.scores >= self.threshold) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        kept: list[int] = []
        for word in dict.fromkeys(found.labels):
            own = np.array([i for i, label in enumerate(found.labels) if label == word and is_kept[i]], int)
            kept += own[box_nms(boxes[own], found.scores[own], SAME_BOX_IOU)].tolist() if len(own) else []
        order = sorted(kept, key=lambda index: (-found.scores[index], index))
        return Detections(boxes, found.scores, found.labels)[np.array(order, int)]


def as_function(detector: Any, threshold: float) -> Detect:
    """A detector of any kind as a function of an image and words."""
    if isinstance(detector, str | os.PathLike):
        detector = load_detector(detector)
    if isinstance(detector, tuple) and len(detector) == 2:
        model, processor = detector
        return lambda image, words: run_model(model, processor, image, words, threshold)
    if getattr(detector, "task", None) == "zero-shot-object-detection":
        if getattr(detector, "processor", None) is not None:
            # A pipeline runs the whole model once for each word: its model can do all of them in one pass.
            return as_function((detector.model, detector.processor), threshold)
        return lambda image, words: detector(Image.fromarray(image), candidate_labels=words, threshold=threshold)
    if callable(detector) and not isinstance(detector, torch.nn.Module | type):
        return lambda image, words: detector(image, words)
    raise ConfigError(
        f"detector is {shown(detector)}: expected a name on the Hugging Face Hub, (model, processor) of transformers, "
        "a zero-shot-object-detection pipeline, or a callable of an image and words"
    )


@torch.inference_mode()
def run_model(model: Any, processor: Any, image: np.ndarray, words: list[str], threshold: float) -> dict[str, Any]:
    """One pass of a transformers detector for all words."""
    inputs = processor(images=Image.fromarray(image), text=[words], return_tensors="pt").to(model.device)
    outputs = model(**inputs)
    decode = processor.post_process_grounded_object_detection
    options = {
        "threshold": threshold,
        "text_threshold": TEXT_THRESHOLD,
        "input_ids": inputs.get("input_ids"),
        "target_sizes": [image.shape[:2]],
        "text_labels": [words],
    }
    known = inspect.signature(decode).parameters
    (found,) = decode(outputs, **{name: value for name, value in options.items() if name in known})
    return found


def read_detections(found: Any, words: Sequence[str]) -> Detections:
    """Detections from what a detector returns.

    Raises:
        DetectorError: It is something else.
    """
    if isinstance(found, Detections):
        return found
    boxes, scores, labels = _columns(found)
    try:
        corners = np.asarray(_plain(boxes), np.float32).reshape(-1, 4)
        certainty = np.asarray(_plain(scores), np.float32).reshape(-1)
        names = tuple(word_of(label, words) for label in _plain(labels))
    except (TypeError, ValueError, IndexError) as error:
        raise DetectorError(f"the detector returned {shown(found)}: expected {EXPECTED} ({error})") from error
    if not len(corners) == len(certainty) == len(names) or not np.isfinite(corners).all():
        raise DetectorError(
            f"the detector returned {len(corners)} boxes, {len(certainty)} scores and {len(names)} labels: expected as "
            "many of each, with finite numbers"
        )
    is_named = np.array([bool(name) for name in names], bool)
    return Detections(corners, certainty, names)[np.flatnonzero(is_named)]


EXPECTED = "boxes (x0, y0, x1, y1), scores and labels"


def _columns(found: Any) -> tuple[Any, Any, Any]:
    """Boxes, scores and labels as they came."""
    if isinstance(found, Mapping) and {"boxes", "scores"} <= found.keys():
        # transformers: "labels" are ids in some models, and "text_labels" always the words.
        return found["boxes"], found["scores"], found.get("text_labels", found.get("labels"))
    if hasattr(found, "xyxy") and hasattr(found, "confidence"):  # supervision
        names = getattr(found, "data", {}).get("class_name")
        names = found.class_id if names is None else names
        return found.xyxy, found.confidence, [] if names is None else names
    if isinstance(found, list) and all(isinstance(one, Mapping) and "box" in one for one in found):
        boxes = [[one["box"][edge] for edge in ("xmin", "ymin", "xmax", "ymax")] for one in found]
        return boxes, [one["score"] for one in found], [one["label"] for one in found]
    if isinstance(found, tuple | list) and len(found) == 3:
        return found[0], found[1], found[2]
    raise DetectorError(f"the detector returned {shown(found)}: expected {EXPECTED}")


def _plain(values: Any) -> Any:
    return values.detach().cpu().tolist() if isinstance(values, torch.Tensor) else values


def word_of(label: Any, words: Sequence[str]) -> str:
    """The word that a detector's label stands for; empty if none was recognised.

    A label is a word, its number, or, from Grounding DINO, the parts of words that were recognised: "cat" for "a cat",
    or "cat remote" if two words were recognised in one place, which becomes the first of them.
    """
    if not isinstance(label, str):
        return words[int(label)] if 0 <= int(label) < len(words) else str(int(label))
    phrase = label.strip().rstrip(".").strip()
    if phrase in words or not phrase:
        return phrase
    folded = phrase.casefold()
    parts = set(folded.split())
    shared = [len(parts & set(word.casefold().split())) for word in words]
    best = max(range(len(words)), key=lambda index: (words[index].casefold() == folded, shared[index]))
    return words[best] if shared[best] or words[best].casefold() == folded else phrase
