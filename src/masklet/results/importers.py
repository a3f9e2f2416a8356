"""Masks from other formats: PNG and COCO. Files and plain dicts in, arrays and run lengths out."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco
from PIL import Image

from masklet.config import SizeHW
from masklet.errors import ImageError
from masklet.images.reading import explained
from masklet.mask_prompts import MASK_PROMPT_LOGIT
from masklet.masks import Rle, check_rle, encode_edges, join_rle, text_rle, without_empty_runs
from masklet.masks.resizing import reduced
from masklet.numbers import MAX_COORDINATE, real_number, shown, size_of, whole_number

LOSSY = ("JPEG", "MPO", "WEBP", "JPEG2000", "AVIF")
"""Formats that change pixel values."""
MAX_UNPACKED_BYTES = 2**35
"""Size of the unpacked masks of an index image."""
MAX_OUTLINE_PX = 10**7
"""Length of a polygon's outline. pycocotools takes 100 bytes for each pixel."""
ONE_IMAGE = "expected one. Choose its annotations: [a for a in annotations if a['image_id'] == …]"


def stand_in_logits(masks: np.ndarray) -> np.ndarray:
    """(masks, 256, 256) float32: logits for masks that no network predicted, as of a mask prompt at 1024×1024."""
    logits = np.zeros((len(masks), 256, 256), np.float32)
    for into, mask in zip(logits, masks, strict=True):  # one at a time: it needs the mask in float32
        into[:] = MASK_PROMPT_LOGIT * (2 * reduced(mask.astype(np.float32), (256, 256)) - 1)
    return logits


# PNG


def read_index_image(path: str | os.PathLike[str], threshold: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The masks of a PNG: one of a black and white image, or one for each value except 0.

    Args:
        path: The file.
        threshold: If given, the image is one mask, of all values from this one up.

    Returns:
        (masks, height, width) bool in ascending order of value, and (masks,) int, the values; 1 for black and white.

    Raises:
        ImageError: The file is not an image, or has colours; without a threshold, its values do not number masks;
            ``threshold`` is not a number.
    """
    pixels = read_index_map(path)
    if threshold is not None:
        threshold = real_number("threshold", threshold, ImageError)
        # ``read_index_map`` has reduced a black and white image to 0 and 1.
        inside = pixels >= threshold if pixels.max() > 1 else pixels > 0
        return inside[None], np.ones(1, int)
    values, counts = np.unique(pixels, return_counts=True)
    values, counts = values[values > 0], counts[values > 0]
    if pixels.dtype.kind == "f" or len(values) * pixels.size > MAX_UNPACKED_BYTES:
        raise ImageError(
            f"{path} has {len(values)} values of {pixels.dtype} from {values.min(initial=0):g} to "
            f"{values.max(initial=0):g}: expected whole numbers that number masks"
        )
    with explained(str(path)), Image.open(path) as image:
        is_soft_or_lossy = image.mode != "P" and (image.format in LOSSY or is_soft(values, counts))
    if is_soft_or_lossy:
        raise ImageError(
            f"{path} has {len(values)} shades of grey, like a soft mask or a photograph: expected values that number "
            "masks. If it is one mask, pass threshold=128; if they are numbers, save it with a palette"
        )
    return pixels == values[:, None, None], values.astype(int)


def is_soft(values: np.ndarray, counts: np.ndarray) -> bool:
    """Whether grey values and their frequencies come from one mask with soft edges rather than from numbered masks.

    Numbers are consecutive from 1, except for 255 (void), or few. Soft edges have many shades, and most pixels of the
    mask are white.
    """
    are_consecutive = np.array_equal(values[:-1], np.arange(1, len(values)))
    return not are_consecutive and len(values) > 8 and values[-1] == 255 and counts.argmax() == len(values) - 1


def read_index_map(path: str | os.PathLike[str]) -> np.ndarray:
    """The values of an image that numbers masks: (height, width) integers; white in a black and white image gives 1.

    Raises:
        ImageError: The file is not an image, or has colours.
    """
    with explained(str(path)), Image.open(path) as image:
        pixels = np.asarray(image)
        if image.mode == "P":
            white = None
        elif pixels.ndim == 3:
            pixels, white = np.asarray(image.convert("RGBA")), 255
            if (pixels[..., :3] != pixels[..., :1]).any() or (pixels[..., 3] < 255).any():
                raise ImageError(
                    f"{path} is an image in colours or with transparency ({image.mode}), not masks: expected black "
                    "and white, or a palette or grey image whose values number the masks"
                )
            pixels = pixels[..., 0]
        else:
            white = {"1": 1, "L": 255}.get(image.mode)  # 16 bits may well number 65535 objects
    is_black_and_white = white is not None and np.isin(pixels, (0, white)).all()
    return (pixels > 0).astype(np.uint8) if is_black_and_white else pixels


# COCO


def annotations_of(
    data: Mapping[str, Any] | Iterable[Mapping[str, Any]], size_hw: SizeHW | None
) -> tuple[list[Mapping[str, Any]], SizeHW | None]:
    """The annotations of one image, from a COCO data set or a plain list, and (height, width) if it is known.

    Raises:
        ValueError: The annotations are of several images, ``data`` is not a data set, or ``size_hw`` is not a size or
            not the data set's.
    """
    size_hw = None if size_hw is None else size_of("size_hw", size_hw, ValueError)
    annotations: Any = data
    if isinstance(data, Mapping):
        annotations, saved_hw = data.get("annotations"), image_size(data.get("images"))
        if not isinstance(annotations, list | tuple | np.ndarray):
            raise ValueError(f'a dict of {shown(list(data)[:5])} is not a COCO data set: expected "annotations" in it')
        if None not in (size_hw, saved_hw) and size_hw != saved_hw:
            raise ValueError(f"size_hw is {size_hw}, but the data set's image has {saved_hw}: both are (height, width)")
        size_hw = saved_hw if size_hw is None else size_hw
    if isinstance(annotations, str | bytes) or not isinstance(annotations, Iterable):
        raise ValueError(
            f"annotations are {shown(data)}: expected a list of COCO annotations or a data set. Read a file with "
            "json.load(open(path))"
        )
    listed = list(annotations)
    for index, one in enumerate(listed):
        if not isinstance(one, Mapping):
            raise ValueError(f'annotation {index} is {shown(one)}: expected a dict with "segmentation"')
    try:
        ids = {one.get("image_id") for one in listed}
    except TypeError as error:  # lists
        raise ValueError(f"an image_id of the annotations is neither a number nor text: {error}") from error
    if len(ids) > 1:
        raise ValueError(f"the annotations are of {len(ids)} images: {ONE_IMAGE}")
    return listed, size_hw


def image_size(images: Any) -> SizeHW | None:
    """(height, width) from the ``images`` of a COCO data set, if it says so.

    Raises:
        ValueError: There are several images, or the size is malformed.
    """
    images = [] if images is None else images
    if not isinstance(images, list | tuple | np.ndarray) or not all(isinstance(image, Mapping) for image in images):
        raise ValueError(f"the images of the COCO data set are {shown(images)}: expected a list of dicts")
    if len(images) > 1:
        raise ValueError(f"the COCO data set has {len(images)} images: {ONE_IMAGE}")
    if not len(images) or not {"height", "width"} <= images[0].keys():
        return None
    return size_of("the data set's image size", (images[0]["height"], images[0]["width"]), ValueError)


def annotation_values(annotations: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """(masks,) float32 scores and (masks,) int object ids; 1, and the index, where an annotation has none.

    Raises:
        ValueError: A score is not a finite number, or an id not a whole number.
    """
    largest = float(np.finfo(np.float32).max)
    scores, object_ids = np.ones(len(annotations), np.float32), np.arange(len(annotations))
    for index, annotation in enumerate(annotations):
        # Some tools write null.
        if (score := annotation.get("score")) is not None:
            name = f"the score of annotation {index}"
            scores[index] = real_number(name, score, ValueError, least=-largest, most=largest)
        if (object_id := annotation.get("object_id")) is not None:
            name = f"the object_id of annotation {index}"
            object_ids[index] = whole_number(name, object_id, ValueError)
    return scores, object_ids


def read_annotations(annotations: Sequence[Mapping[str, Any]], size_hw: SizeHW | None) -> tuple[list[Rle], SizeHW]:
    """The masks of COCO annotations: compressed or uncompressed run lengths, or polygons.

    Returns:
        Run lengths of one size, and that (height, width).

    Raises:
        ValueError: The size is unknown, sizes differ, or a segmentation is malformed.
    """
    runs = [read_segmentation(a.get("segmentation"), size_hw, index) for index, a in enumerate(annotations)]
    if not runs:
        if size_hw is None:
            raise ValueError("the size of the image is unknown without annotations: pass size_hw=(height, width)")
        return [], size_hw
    if size_hw is not None and (other := [run["size"] for run in runs if tuple(run["size"]) != size_hw]):
        raise ValueError(f"run lengths of size {other[0]} do not fit size_hw={size_hw}: both are (height, width)")
    check_rle(runs)
    height, width = runs[0]["size"]
    return [without_empty_runs(run) for run in runs], (height, width)


def read_segmentation(segmentation: Any, size_hw: SizeHW | None, index: int) -> Rle:
    """Run lengths of the ``segmentation`` of annotation ``index``.

    Everything is checked here: pycocotools ends the process on numbers that it does not expect.

    Raises:
        ValueError: It is malformed.
    """
    if isinstance(segmentation, Mapping) and {"size", "counts"} <= segmentation.keys():
        return read_run_lengths(segmentation["size"], segmentation["counts"], index)
    polygons = segmentation.tolist() if isinstance(segmentation, np.ndarray) else segmentation
    if isinstance(polygons, list | tuple) and all(map(is_polygon, polygons)):
        if size_hw is None:
            raise ValueError("the size of the image is unknown from polygons: pass size_hw=(height, width)")
        size_hw = size_of(f"the size of the image of annotation {index}", size_hw, ValueError)
        return fill_polygons([read_polygon(polygon, index) for polygon in polygons], size_hw, index)
    raise ValueError(
        f"annotation {index} has the segmentation {shown(segmentation)}: expected run lengths "
        '{"size": [height, width], "counts": …}, or polygons [[x0, y0, x1, y1, x2, y2, …], …]'
    )


def read_run_lengths(size: Any, counts: Any, index: int) -> Rle:
    """Run lengths from COCO's string, or from numbers of pixels outside and inside the mask, column by column."""
    height, width = size_of(f"the size of annotation {index}", size, ValueError)
    if isinstance(counts, str | bytes):
        text = counts if isinstance(counts, str) else counts.decode("ascii", errors="replace")
        run: Rle = {"size": [height, width], "counts": text}
        try:
            check_rle([run])
        except ValueError as error:
            raise ValueError(f"annotation {index}: {error}") from None
        return run
    numbers = as_numbers(counts)
    if numbers is None or (numbers < 0).any() or (numbers != np.floor(numbers)).any():
        raise ValueError(
            f"annotation {index} has the run lengths {shown(counts)}: expected COCO's string, or whole numbers from 0"
        )
    if (total := numbers.astype(float).sum()) != height * width:
        raise ValueError(
            f"annotation {index}: run lengths of {total:.0f} pixels do not fill their size of {width}×{height} pixels"
        )
    return encode_edges(numbers.astype(np.int64).cumsum(), (height, width))


def is_polygon(numbers: Any) -> bool:
    """Whether these are alternating x and y of at least three points; COCO's tools take four numbers for a box."""
    return isinstance(numbers, list | tuple | np.ndarray) and len(numbers) >= 6 and len(numbers) % 2 == 0


def read_polygon(polygon: Any, index: int) -> np.ndarray:
    """(numbers,) float64: x and y in turn, of a polygon of annotation ``index``."""
    numbers = as_numbers(polygon)
    if numbers is None:
        raise ValueError(
            f"annotation {index} has the polygon {shown(polygon)}: expected numbers, x0, y0, x1, y1, x2, y2, …"
        )
    if not (wrong := ~(np.abs(numbers) <= MAX_COORDINATE)).any():
        return numbers.astype(float)
    raise ValueError(
        f"annotation {index} has the coordinate {numbers[wrong][0]:g} in a polygon: expected pixels, finite and within "
        f"±{MAX_COORDINATE}"
    )


def fill_polygons(polygons: Sequence[np.ndarray], size_hw: SizeHW, index: int) -> Rle:
    """Fills polygons as pycocotools does. It needs memory for every pixel along their outlines."""
    for polygon in polygons:
        points_xy = polygon.reshape(-1, 2)
        length_px = np.abs(points_xy - np.roll(points_xy, 1, axis=0)).max(1).sum()
        if length_px > MAX_OUTLINE_PX:
            raise ValueError(
                f"annotation {index} has a polygon with an outline of {length_px:.0f} pixels: expected "
                f"{MAX_OUTLINE_PX} at most. Are its coordinates pixels of the image?"
            )
    nothing = encode_edges(np.zeros(0, int), size_hw)  # for an empty list of polygons
    return join_rle([nothing, *(text_rle(coco.frPyObjects([p.tolist()], *size_hw)[0]) for p in polygons)])


def as_numbers(values: Any) -> np.ndarray | None:
    """(numbers,) int or float; None for anything else."""
    if not isinstance(values, list | tuple | np.ndarray):
        return None
    try:
        numbers = np.asarray(values)
    except (ValueError, OverflowError):  # lists within the list
        return None
    return numbers if numbers.ndim == 1 and numbers.dtype.kind in "iuf" else None
