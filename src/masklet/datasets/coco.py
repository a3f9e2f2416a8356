"""COCO instances, and SA-1B, which has a JSON file in that format beside each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from masklet.datasets.scenes import Frame, Scene, mask_of_coco, read_json
from masklet.errors import DataError
from masklet.images.folder import images_in
from masklet.images.reading import read_image
from masklet.numbers import size_of


def read_coco(folder: Path, annotations: Path) -> list[Scene]:
    """All images that have objects.

    Args:
        folder: Folder of the images.
        annotations: COCO's JSON file. Polygons and both kinds of run lengths may be mixed. Crowds and annotations
            without a segmentation are skipped.

    Raises:
        DataError: The file is not COCO instances, or contains no objects.
    """
    content = read_json(annotations)
    try:
        images = {image["id"]: image for image in content["images"]}
        objects: dict[Any, list[Mapping[str, Any]]] = {}
        for annotation in content["annotations"]:
            if annotation.get("segmentation") and not annotation.get("iscrowd"):
                objects.setdefault(annotation["image_id"], []).append(annotation)
        for key in objects.keys() - images.keys():
            raise DataError(
                f"{annotations}: annotation {objects[key][0].get('id')} is of image {key}, which is not among its "
                f"{len(images)} images"
            )
        scenes = [
            _scene(folder / images[key]["file_name"], images[key], of_image, annotations)
            for key, of_image in objects.items()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{annotations} is not COCO instances ({error!r}): expected images with id, file_name, height and width, "
            "and annotations with image_id and segmentation"
        ) from error
    if not scenes:
        raise DataError(f"{annotations} has no objects: {len(images)} images, but no segmentations other than crowds")
    return scenes


def read_sa1b(folder: Path) -> list[Scene]:
    """All images of a folder of SA-1B: ``sa_1.jpg`` beside ``sa_1.json``, at any depth.

    Raises:
        DataError: There are no such images.
    """
    files = sorted(folder.rglob("*.json"))
    folders = {place: {image.stem: image for image in images_in(place)} for place in {f.parent for f in files}}
    pairs = [(file, folders[file.parent][file.stem]) for file in files if file.stem in folders[file.parent]]
    if not pairs:
        raise DataError(f"no images of SA-1B in {folder}: expected NAME.jpg beside NAME.json")
    return [Scene(image.stem, partial(_read_sa1b, file, image), files=(image, file)) for file, image in pairs]


def _scene(path: Path, image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]], source: Path) -> Scene:
    size_hw = size_of(f"{source}: the size of {path.name}", (image["height"], image["width"]), DataError)
    return Scene(path.stem, partial(_read, path, size_hw, annotations, str(source)), files=(path,))


def _read(image: Path, size_hw: tuple[int, int], annotations: Sequence[Mapping[str, Any]], where: str, _: int) -> Frame:
    masks = {
        number: mask_of_coco(annotation["segmentation"], size_hw, where, annotation.get("id", number))
        for number, annotation in enumerate(annotations, start=1)
    }
    return Frame(str(image), read_image(image), masks)


def _read_sa1b(file: Path, image: Path, _: int) -> Frame:
    content = read_json(file)
    try:
        size = (content["image"]["height"], content["image"]["width"])
        size_hw = size_of(f"{file}: the size of the image", size, DataError)
        annotations = [annotation for annotation in content["annotations"] if annotation["segmentation"]]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{file} is not in the format of SA-1B ({error!r}): expected image and annotations with masks"
        ) from error
    return _read(image, size_hw, annotations, str(file), 0)
