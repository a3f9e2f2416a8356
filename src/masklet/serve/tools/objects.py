"""Points and boxes that tools send in one list, as prompts of one object or of several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from masklet.errors import PromptError
from masklet.image import EncodedImage
from masklet.results import Masks

Point: TypeAlias = tuple[float, float, int]
"""x, y in pixels; 1 on the object or 0 beside it."""
Box: TypeAlias = tuple[float, float, float, float]
"""x0 y0 x1 y1 in pixels."""


@dataclass
class ObjectPrompt:
    """The prompts of one object."""

    points: list[Point] = field(default_factory=list)
    box: Box | None = None

    def contains(self, point: Point) -> bool:
        """Whether a point is inside the box."""
        x0, y0, x1, y1 = self.box or (0, 0, 0, 0)
        return x0 <= point[0] <= x1 and y0 <= point[1] <= y1

    @property
    def keywords(self) -> dict[str, Any]:
        """Arguments for ``EncodedImage.predict`` and ``VideoSession.prompt``."""
        return {"points": self.points or None, "box": self.box}


def objects_of(points: Iterable[Point], boxes: Sequence[Box]) -> list[ObjectPrompt]:
    """Each box is an object, and so are all points together if there is no box.

    With one box, all points correct its object. With several, a point belongs to the smallest box that contains it, a
    background point to all of them; points in no box are one more object.

    Raises:
        PromptError: There are only background points.
    """
    boxed, loose = [ObjectPrompt(box=box) for box in boxes], ObjectPrompt()
    for point in points:
        around = sorted((prompt for prompt in boxed if prompt.contains(point)), key=lambda prompt: area(prompt.box))
        owners = boxed if len(boxed) == 1 else around[:1] if point[2] else around
        for prompt in owners or [loose]:
            prompt.points.append(point)
    if any(positive for _, _, positive in loose.points):
        return [*boxed, loose]
    if loose.points and not boxed:
        raise PromptError("there are only background points: expected a point on the object, or a box around it")
    return boxed


def area(box: Box | None) -> float:
    """Area of a box, in square pixels."""
    return 0.0 if box is None else (box[2] - box[0]) * (box[3] - box[1])


def predict(image: EncodedImage, prompts: Sequence[ObjectPrompt]) -> Masks:
    """One mask for each object.

    Objects are decoded one by one: of one that is prompted with a single click, the network proposes three masks.
    """
    results = [image.predict(**prompt.keywords) for prompt in prompts]
    return Masks(
        np.concatenate([result.masks for result in results]),
        np.concatenate([result.logits for result in results]),
        np.concatenate([result.iou_scores for result in results]),
        np.arange(len(results)),
        image.image,
    )
