"""A Kalman filter of boxes that move with constant velocity.

Source: SORT (arXiv 1602.00763), section 3.2; centre, aspect ratio and height as in DeepSORT (arXiv 1703.07402),
section 2.1, whose noise it has. The four numbers do not influence each other there, so each has a filter of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from masklet.video.policy import Box

POSITION_NOISE = 1 / 20
"""Standard deviation of a position, as a share of the box's height."""
VELOCITY_NOISE = 1 / 160
"""Standard deviation of a velocity for each step, as a share of the box's height."""
ASPECT_NOISE, ASPECT_VELOCITY_NOISE, MEASURED_ASPECT_NOISE = 1e-2, 1e-5, 1e-1
"""Standard deviations of the aspect ratio, which has no unit."""
HEIGHT = 3


@dataclass(frozen=True)
class BoxFilter:
    """What is known of a moving box: x and y of its centre, its width / height, and its height."""

    means: tuple[float, ...]  # four positions, then four velocities for each step
    covariances: tuple[tuple[float, float, float], ...]  # of each number: of position, both, and velocity

    @classmethod
    def start(cls, box: Box) -> BoxFilter:
        """A box that has just been observed for the first time."""
        measured = measurement(box)
        height = measured[HEIGHT]
        deviations = [(2 * POSITION_NOISE * height, 10 * VELOCITY_NOISE * height)] * 4
        deviations[2] = ASPECT_NOISE, ASPECT_VELOCITY_NOISE
        return cls((*measured, 0.0, 0.0, 0.0, 0.0), tuple((p * p, 0.0, v * v) for p, v in deviations))

    @property
    def box(self) -> Box:
        """The box."""
        x, y, aspect, height = self.means[:4]
        width = aspect * height
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2

    def predict(self) -> BoxFilter:
        """One step later."""
        height = self.means[HEIGHT]
        noise = [(POSITION_NOISE * height, VELOCITY_NOISE * height)] * 4
        noise[2] = ASPECT_NOISE, ASPECT_VELOCITY_NOISE
        positions = [self.means[i] + self.means[4 + i] for i in range(4)]
        covariances = [
            (pp + 2 * pv + vv + p * p, pv + vv, vv + v * v)
            for (pp, pv, vv), (p, v) in zip(self.covariances, noise, strict=True)
        ]
        return BoxFilter((*positions, *self.means[4:]), tuple(covariances))

    def update(self, box: Box) -> BoxFilter:
        """Corrected by a box that was measured."""
        height = self.means[HEIGHT]
        positions, velocities, covariances = [], [], []
        for number, (measured, (pp, pv, vv)) in enumerate(zip(measurement(box), self.covariances, strict=True)):
            noise = MEASURED_ASPECT_NOISE if number == 2 else POSITION_NOISE * height
            total = pp + noise * noise
            difference = measured - self.means[number]
            positions.append(self.means[number] + pp / total * difference)
            velocities.append(self.means[4 + number] + pv / total * difference)
            covariances.append((pp - pp * pp / total, pv - pp * pv / total, vv - pv * pv / total))
        return BoxFilter((*positions, *velocities), tuple(covariances))

    def with_step(self, share: float) -> BoxFilter:
        """The same in steps that are longer, or go the other way: velocities are for each step."""
        return BoxFilter(
            (*self.means[:4], *(share * velocity for velocity in self.means[4:])),
            tuple((pp, share * pv, share * share * vv) for pp, pv, vv in self.covariances),
        )

    def to_json(self) -> list[list[float]]:
        """Plain lists, for notes."""
        return [list(self.means), *map(list, self.covariances)]

    @classmethod
    def from_json(cls, values: Sequence[Sequence[float]]) -> BoxFilter:
        """From what ``to_json`` returned."""
        means, *covariances = values
        return cls(tuple(means), tuple((pp, pv, vv) for pp, pv, vv in covariances))


def measurement(box: Box) -> tuple[float, float, float, float]:
    """Centre, width / height, and height of a box that is not empty."""
    x0, y0, x1, y1 = box
    return (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / (y1 - y0), y1 - y0


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union; 0 if they do not overlap."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (first, second)]
    return width * height / (sum(areas) - width * height)


def has_area(box: Box) -> bool:
    """Whether a box is that of a mask with pixels."""
    return box[2] > box[0] and box[3] > box[1]
