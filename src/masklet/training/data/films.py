"""Films: folders as of DAVIS and YouTube-VOS, and SA-V's videos with a JSON of masklets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from masklet.errors import DataError
from masklet.pictures import read_picture
from masklet.training.batches import Mask
from masklet.training.data.scenes import Frame, Scene, mask_of_coco, masks_of_labels, read_json, read_labels
from masklet.video.frames import Film, open_film, pictures_in

EXPECTED = "expected JPEGImages/FILM/*.jpg and Annotations/FILM/*.png"


def read_films(folder: Path) -> list[Scene]:
    """All films of a folder: ``JPEGImages/FILM/*.jpg`` and ``Annotations/FILM/*.png``.

    DAVIS's folder has a ``480p`` above the films, which is looked for. Annotations are palette or grey: 0 background, a
    number an object, 255 void. Pictures without one are passed over, as YouTube-VOS annotates every fifth.

    Raises:
        DataError: There are no films, or one has no annotations.
    """
    pictures, annotations = (_films_folder(folder, kind) for kind in ("JPEGImages", "Annotations"))
    names = sorted(path.name for path in pictures.iterdir() if path.is_dir()) if pictures.is_dir() else []
    if not names:
        raise DataError(f"no films in {pictures}: {EXPECTED} in {folder}")
    scenes = []
    for name in names:
        pairs = [(picture, annotations / name / f"{picture.stem}.png") for picture in pictures_in(pictures / name)]
        pairs = [(picture, labels) for picture, labels in pairs if labels.exists()]
        if not pairs:
            raise DataError(f"film {name} has no annotations in {annotations / name}: {EXPECTED}, of the same names")
        files = tuple(file for pair in pairs for file in pair)
        scenes.append(Scene(name, partial(_read_frame, pairs), partial(len, pairs), files))
    return scenes


def _films_folder(folder: Path, kind: str) -> Path:
    place = folder / kind
    return place / "480p" if (place / "480p").is_dir() else place


def _read_frame(pairs: list[tuple[Path, Path]], index: int) -> Frame:
    picture, labels = pairs[index]
    numbered = read_labels(labels).copy()
    numbered[numbered == 255] = 0
    return Frame(str(picture), read_picture(picture), masks_of_labels(numbered))


def read_sav(folder: Path) -> list[Scene]:
    """All videos of a folder of SA-V, at any depth: ``NAME.mp4`` with ``NAME_manual.json``, ``NAME_auto.json`` or both.

    Raises:
        DataError: There are none.
    """
    scenes = []
    for video in sorted(folder.rglob("*.mp4")):
        files = [video.with_name(f"{video.stem}_{kind}.json") for kind in ("manual", "auto")]
        if files := [file for file in files if file.exists()]:
            masklets = tuple(files)
            count = partial(_annotated_frames, masklets)
            scenes.append(Scene(video.stem, partial(_read_sav, video, masklets), count, (video, *files)))
    if not scenes:
        raise DataError(f"no videos of SA-V in {folder}: expected NAME.mp4 beside NAME_manual.json or NAME_auto.json")
    return scenes


@lru_cache(maxsize=8)
def _masklets(files: tuple[Path, ...]) -> list[tuple[Path, Mapping[str, Any]]]:
    """Kept for a few films, as a clip asks for them frame by frame."""
    found = [(file, read_json(file)) for file in files]
    for file, content in found:
        if not isinstance(content, dict) or not isinstance(content.get("masklet"), list) or not content["masklet"]:
            raise DataError(f"{file} is not SA-V's: expected masklet, a list of frames with a list of run lengths each")
    return found


@lru_cache(maxsize=8)
def _film(video: Path) -> Film:
    return open_film(video)


def _annotated_frames(files: tuple[Path, ...]) -> int:
    return min(len(content["masklet"]) for _, content in _masklets(files))


def _read_sav(video: Path, files: tuple[Path, ...], index: int) -> Frame:
    film, count = _film(video), _annotated_frames(files)
    # Every fourth frame of SA-V is annotated; the counts say so of any video.
    stride = max(1, round(len(film) / count))
    found = [(file, one) for file, content in _masklets(files) for one in content["masklet"][index]]
    masks: dict[int, Callable[[], Mask]] = {
        number: mask_of_coco(segmentation, film.size_hw, str(file), number)
        for number, (file, segmentation) in enumerate(found, start=1)
        if segmentation  # an object may be absent
    }
    return Frame(f"{video}, frame {index * stride}", film[index * stride].picture, masks)
