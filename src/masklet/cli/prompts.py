"""Prompts as they are written on the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from masklet.errors import PromptError

if TYPE_CHECKING:
    from masklet.batch.prompt_files import ObjectPrompt
    from masklet.image import EncodedImage
    from masklet.results import Masks

NUMBERED = 2**31
"""Ids of objects are below this."""


@dataclass
class ObjectPrompts:
    """The prompts of one object, or those without a name."""

    points: list[tuple[float, ...]] = field(default_factory=list)
    boxes: list[tuple[float, ...]] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)

    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of ``EncodedImage.predict``."""
        if len(self.masks) > 1:
            raise PromptError("there are several masks: expected one for each object, as in cup@mask.png")
        from masklet.mask_prompts import read_mask_file  # slow: imports torch

        mask = read_mask_file(self.masks[0]) if self.masks else None
        return {"points": self.points or None, "boxes": self.boxes or None, "mask": mask}


class HasKeywords(Protocol):
    """The prompts of one object, from options or from a file."""

    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of ``EncodedImage.predict``."""


@dataclass(frozen=True)
class Prompts:
    """The prompts of an image, by object. Without names, all points are on one object and each box is one."""

    objects: Mapping[str | None, HasKeywords]

    @property
    def ids(self) -> dict[str, int]:
        """An id for each name: its number if it is one, and otherwise the first free one from 0."""
        numbers = {name: int(name) for name in self.objects if name is not None and is_number(name)}
        free = (number for number in range(NUMBERED) if number not in numbers.values())
        return {name: numbers[name] if name in numbers else next(free) for name in self.objects if name is not None}

    @property
    def names(self) -> dict[int, str]:
        """The names that are not numbers, by id."""
        return {number: name for name, number in self.ids.items() if not is_number(name)}

    def predict(self, image: EncodedImage, *, candidates: bool, **options: Any) -> Masks:
        """The masks of all objects, in the order of the prompts; object ids are those of ``ids``."""
        found: list[Masks] = []
        for name, prompts in self.objects.items():
            try:
                masks = _predict(image, {**prompts.keywords(), **options}, candidates)
            except PromptError as error:
                raise error if name is None else PromptError(f"object {name!r}: {error}") from error
            found.append(masks if name is None else replace(masks, object_ids=masks.object_ids * 0 + self.ids[name]))
        return found[0] if len(found) == 1 else joined(found)


def _predict(image: EncodedImage, keywords: dict[str, Any], candidates: bool) -> Masks:
    return image.predict(**keywords, candidates=True).flatten() if candidates else image.predict(**keywords)


def joined(parts: Sequence[Masks]) -> Masks:
    """The masks of several results for one image."""
    import numpy as np

    columns = ("masks", "logits", "iou_scores", "object_ids")
    return replace(parts[0], **{name: np.concatenate([getattr(part, name) for part in parts]) for name in columns})


def read_prompts(points: Sequence[str], boxes: Sequence[str], masks: Sequence[str]) -> Prompts:
    """Parses the values of --point, --box and --mask, ``[OBJECT@]VALUE`` each.

    Raises:
        PromptError: There are none; one of them cannot be read; only some name an object; an object has several boxes
            or masks.
    """
    objects: dict[str | None, ObjectPrompts] = {}
    for text, name, value in _named(points, "--point"):
        objects.setdefault(name, ObjectPrompts()).points.append(parse_numbers("--point", value, (2, 3), text))
    for text, name, value in _named(boxes, "--box"):
        objects.setdefault(name, ObjectPrompts()).boxes.append(parse_numbers("--box", value, (4,), text))
    for _, name, value in _named(masks, "--mask"):
        objects.setdefault(name, ObjectPrompts()).masks.append(Path(value))
    if not objects:
        raise PromptError("nothing to segment: give --point, --box or --mask (masklet image --help)")
    if None in objects and len(objects) > 1:
        raise PromptError("some prompts name their object and others do not: expected OBJECT@ before all of them")
    for name, prompts in objects.items():
        if name is not None and (len(prompts.boxes) > 1 or len(prompts.masks) > 1):
            raise PromptError(
                f"object {name!r} has several boxes or masks: expected one, and other names for other objects"
            )
    return Prompts(objects)


def prompts_of_file(name: str, prompts: Sequence[ObjectPrompt]) -> Prompts:
    """The prompts of an image from a file.

    Raises:
        PromptError: There are none, or some are for a frame of a video.
    """
    if not prompts:
        raise PromptError(f"the file of prompts has none for {name}: expected a row with this name, or without one")
    if frames := [prompt.frame for prompt in prompts if prompt.frame]:
        raise PromptError(f"a prompt of {name} is for frame {frames[0]}, but it is an image: expected no frames")
    return Prompts({str(prompt.object): prompt for prompt in prompts})


def _named(texts: Sequence[str], option: str) -> Iterator[tuple[str, str | None, str]]:
    """Each text, the name of its object, and its value."""
    for text in texts:
        # Numbers contain no @, names of files may.
        name, at, value = text.partition("@") if option == "--mask" else text.rpartition("@")
        if not at or (option == "--mask" and os.path.lexists(text)):
            yield text, None, text
        elif not name.strip():
            raise PromptError(f"{option} {text!r}: expected the name of an object before @, as in cup@{value}")
        else:
            # 1 and 01 are one object.
            yield text, str(int(name)) if is_number(name) else name.strip(), value


def loaded(words: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments for words, with the detector loaded, once for all images; none without words."""
    if not words:
        return {}
    from masklet.detection import DEFAULT_DETECTOR, load_detector

    return {**words, "detector": load_detector(words.get("detector", DEFAULT_DETECTOR))}


def predict_words(image: EncodedImage, words: dict[str, Any], *, candidates: bool, **options: Any) -> Masks:
    """The masks of what words name."""
    if candidates:
        return image.predict(**words, **options, candidates=True).flatten()
    return image.predict(**words, **options)


def is_number(name: str) -> bool:
    """Whether a name is the id of an object."""
    return name.isascii() and name.isdigit() and len(name) < 10


def parse_numbers(option: str, text: str, counts: tuple[int, ...], whole: str | None = None) -> tuple[float, ...]:
    """Parses comma-separated numbers.

    Args:
        option: Option of the command, for errors.
        text: The numbers.
        counts: How many there may be.
        whole: The value of the option, if the numbers are a part of it.

    Raises:
        PromptError: These are not numbers, or not as many as the option takes.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in counts:
        expected = " or ".join(map(str, counts))
        raise PromptError(f"{option} {whole or text!r}: expected {expected} numbers in pixels, separated by commas")
    return numbers
