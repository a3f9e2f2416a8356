"""How well objects are followed: J, F and J&F of films whose every frame is annotated.

Source: Perazzi et al., "A benchmark dataset and evaluation methodology for video object segmentation" (CVPR 2016),
section 5, and the semi-supervised rules of "The 2017 DAVIS challenge" (arXiv 1704.00675). As there

- a tracker is given the first frame's masks; neither that frame nor the last is scored;
- a pixel belongs to one object, so where masks overlap the highest logit has it;
- an object that is absent, and not claimed, scores 1: J where neither mask has a pixel, F where neither has a boundary;
- what an annotation calls void, 255, is background.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil, hypot, isqrt
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from masklet.errors import FilmError
from masklet.masks import upscale_logits
from masklet.segmenter import Segmenter
from masklet.video.frames import pictures_in

VOID = 255
TOLERANCE = 0.008
"""Share of the picture's diagonal within which boundaries match."""


@dataclass(frozen=True)
class FilmScore:
    """One film: means over its objects and scored frames."""

    film: str
    objects: int
    frames: int
    j: float
    f: float
    still_j: float
    """Of the first frame's masks, kept all along: what a film scores without a tracker."""
    still_f: float

    @property
    def j_and_f(self) -> float:
        """The mean of both, DAVIS's main measure."""
        return (self.j + self.f) / 2

    @property
    def still_j_and_f(self) -> float:
        """Likewise, of the first frame's masks."""
        return (self.still_j + self.still_f) / 2


@dataclass(frozen=True)
class AnnotatedFilm:
    """A film and the truth about each of its frames."""

    name: str
    pictures: list[Path]
    annotations: list[Path]

    def labels(self, frame: int) -> NDArray[np.uint8]:
        """(height, width): 0 background, 1..k objects."""
        labels = np.array(Image.open(self.annotations[frame]))
        labels[labels == VOID] = 0
        return labels


def evaluate_films(segmenter: Segmenter, folder: Path) -> Iterator[FilmScore]:
    """Follow the objects of the first frame through every film of a folder; see ``read_films`` for its layout."""
    for film in read_films(folder):
        yield evaluate_film(segmenter, film)


def evaluate_film(segmenter: Segmenter, film: AnnotatedFilm) -> FilmScore:
    """Follow the objects of the first frame, each shown by its mask, through one film."""
    first = film.labels(0)
    numbers = [int(number) for number in np.unique(first) if number]
    if not numbers:
        raise FilmError(f"{film.annotations[0]} shows no object: expected numbers from 1 to 254 in the first frame")
    session = segmenter.video(film.pictures)
    for number in numbers:
        session.prompt(0, number, mask=first == number)
    scored = []  # (j, f, still j, still f) for each frame and object
    for result in session.track(end=len(film.pictures) - 2):
        if result.index == 0:
            continue
        truth, labels = film.labels(result.index), label_map(result.masks.logits, first.shape)
        for place, number in enumerate(numbers, start=1):
            real, tracked, still = truth == number, labels == place, first == number
            scored.append(
                (region_j(tracked, real), boundary_f(tracked, real), region_j(still, real), boundary_f(still, real))
            )
    means = map(float, np.mean(scored, axis=0))
    return FilmScore(film.name, len(numbers), len(film.pictures) - 2, *means)


def summarise_films(scores: Iterable[FilmScore]) -> dict[str, float]:
    """Means over objects, as DAVIS takes them: a film with three counts three times.

    Raises:
        ValueError: There are none.
    """
    scores = list(scores)
    if not scores:
        raise ValueError("nothing to summarise: there is no film")
    names = ("j_and_f", "j", "f", "still_j_and_f", "still_j", "still_f")
    objects = [score.objects for score in scores]
    means = {name: float(np.average([getattr(s, name) for s in scores], weights=objects)) for name in names}
    return means | {"films": len(scores), "objects": sum(objects)}


def read_films(folder: Path) -> Iterator[AnnotatedFilm]:
    """Read a folder laid out as DAVIS: ``JPEGImages/FILM/*.jpg`` and ``Annotations/FILM/*.png``, one for each picture.

    Annotations are palette or grey: 0 background, then one number an object, 255 void. DAVIS's own folder has a
    ``480p`` above the films, which is looked for.

    Raises:
        FilmError: There are no films, one is too short, an annotation is missing.
    """
    films = _films_folder(folder, "JPEGImages")
    names = sorted(path.name for path in films.iterdir() if path.is_dir()) if films.is_dir() else []
    if not names:
        raise FilmError(f"no films in {films}: expected JPEGImages/FILM/*.jpg and Annotations/FILM/*.png in {folder}")
    for name in names:
        pictures = pictures_in(films / name)
        if len(pictures) < 3:
            raise FilmError(f"{films / name} has {len(pictures)} pictures: expected 3, as neither end is scored")
        annotations = [_films_folder(folder, "Annotations") / name / f"{picture.stem}.png" for picture in pictures]
        if missing := [path for path in annotations if not path.exists()]:
            raise FilmError(f"{len(missing)} of {len(pictures)} pictures have no annotation: expected {missing[0]}")
        yield AnnotatedFilm(name, pictures, annotations)


def _films_folder(folder: Path, kind: str) -> Path:
    place = folder / kind
    return place / "480p" if (place / "480p").is_dir() else place


def label_map(logits: NDArray[np.float32], size_hw: tuple[int, ...]) -> NDArray[np.int64]:
    """(objects, h, w) logits to (height, width): 0 background, or 1 + the object of the highest logit above 0."""
    height, width = size_hw
    upscaled = upscale_logits(torch.tensor(logits), (height, width)).numpy()
    return np.concatenate([np.zeros_like(upscaled[:1]), upscaled]).argmax(0)


def region_j(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """J: intersection over union of two (height, width) masks; 1 where both are empty."""
    either = np.count_nonzero(mask | truth)
    return np.count_nonzero(mask & truth) / either if either else 1.0


def boundary_f(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """F: harmonic mean of the shares of each boundary that lie near the other; 1 where neither mask has a boundary.

    Where only one has, what of the other's is missed or made up counts as such: 0.
    """
    tolerance_px = ceil(TOLERANCE * hypot(*mask.shape))
    drawn, real = boundary(mask), boundary(truth)
    drawn_count, real_count = np.count_nonzero(drawn), np.count_nonzero(real)
    if not drawn_count or not real_count:
        return float(drawn_count == real_count)
    precision = np.count_nonzero(drawn & within(real, tolerance_px)) / drawn_count
    recall = np.count_nonzero(real & within(drawn, tolerance_px)) / real_count
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a (height, width) mask that differ from that to the right, below, or below to the right.

    Beyond the picture nothing differs; so a mask of everything has no boundary.
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    edges = (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1])
    # Inside, the diagonal one too; in the last row or column it would only repeat another.
    edges[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edges


def within(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """All pixels whose centre is at most ``radius`` pixels from that of one in the mask: dilation by a disk."""
    height, width = mask.shape
    # What lies left of a place, counted, tells by one comparison whether any run of its row is empty.
    counts = np.zeros((height, width + 2 * radius + 1), np.int32)
    np.cumsum(np.pad(mask, ((0, 0), (radius, radius))), axis=1, out=counts[:, 1:])
    near = np.zeros_like(mask)
    for rows in range(min(radius + 1, height)):
        reach = isqrt(radius**2 - rows**2)
        left, right = radius - reach, radius + reach + 1
        in_row = counts[:, right : right + width] > counts[:, left : left + width]
        near[rows:] |= in_row[: height - rows]
        near[: height - rows] |= in_row[rows:]
    return near
