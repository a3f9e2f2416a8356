"""COCO run-length encoding (RLE), by pycocotools.

pycocotools encodes, decodes, merges, measures and compares. It never returns the counts of a compressed RLE, and it
converts bitmaps of whole images only. The last section of this file adds what is missing: reading the counts, and
converting between a box of a large image and the RLE of that image without a bitmap of the image.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict

import numpy as np
import pycocotools.mask as coco

from masklet.numbers import MAX_PIXELS, shown, size_of

MAX_DIGITS = 7
"""Characters of one count: five bits each, for 32 bits and a sign."""


class Rle(TypedDict):
    """A mask as COCO's compressed RLE, ready for JSON."""

    size: list[int]
    """[height, width]."""
    counts: str


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """Masks of one image as RLE: ten thousand masks of a large image take a few megabytes.

    The class reads like the bool array (masks, height, width) that it represents. It has ``shape`` and ``len``. The
    index of one mask gives (height, width) bool. Any other index gives the selected masks, still packed.
    ``numpy.asarray`` unpacks all masks.
    """

    runs: Sequence[Rle]
    """One for each mask, each of the image's size."""
    size_hw: tuple[int, int]
    """Size of the image."""

    ndim = 3
    dtype = np.dtype(bool)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(masks, height, width)."""
        return len(self.runs), *self.size_hw

    def __len__(self) -> int:
        return len(self.runs)

    def __repr__(self) -> str:
        height, width = self.size_hw
        return f"PackedMasks({len(self)} of {width}×{height})"

    def __getitem__(self, index: Any) -> Any:
        chosen = np.arange(len(self))[index]
        if chosen.ndim:
            return PackedMasks([self.runs[number] for number in chosen], self.size_hw)
        run, mask = self.runs[chosen], np.zeros(self.size_hw, bool)
        (box,) = rle_boxes([run]).astype(int).tolist()
        x0, y0, x1, y1 = box
        mask[y0:y1, x0:x1] = crop_rle(run, box)
        return mask

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[number] for number in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        unpacked = np.zeros(self.shape, bool)
        for into, mask in zip(unpacked, self, strict=True):
            into[:] = mask
        return unpacked if dtype is None else unpacked.astype(dtype)


MaskStack: TypeAlias = np.ndarray | PackedMasks
"""(masks, height, width) bool."""


def check_masks(masks: MaskStack) -> None:
    """Raise a ValueError unless ``masks`` is (masks, height, width) bool with at least one pixel each."""
    if masks.ndim != 3 or masks.dtype != np.bool_ or 0 in masks.shape[1:]:
        raise ValueError(
            f"expected bool masks (masks, height, width), got {masks.dtype} of shape {masks.shape}. "
            "Pass one mask as mask[None], logits as logits > 0."
        )


def encode_rle(masks: MaskStack) -> list[Rle]:
    """Encodes masks as COCO's compressed RLE, one dict each, for ``json`` and for pycocotools."""
    check_masks(masks)
    if isinstance(masks, PackedMasks):
        return list(masks.runs)
    _, height, width = masks.shape
    if height * width > MAX_PIXELS:
        raise ValueError(f"masks of {width}×{height} pixels have no run lengths: expected {MAX_PIXELS} pixels at most")
    if not len(masks):
        return []
    # One at a time, since pycocotools needs a copy of each.
    return [text_rle(coco.encode(np.asfortranarray(mask, dtype=np.uint8))) for mask in masks]


def text_rle(run: dict[str, Any]) -> Rle:
    """Converts the RLE that pycocotools returns, with bytes in it, to one that ``json`` can write."""
    return {"size": list(run["size"]), "counts": run["counts"].decode("ascii")}


def decode_rle(runs: Sequence[Rle]) -> np.ndarray:
    """Decodes the result of ``encode_rle``.

    Returns:
        (masks, height, width) bool; (0, 0, 0) for an empty list, whose size is unknown.

    Raises:
        ValueError: They are not run lengths, sizes differ, or the counts do not fit the size; the masks do not fit in
            memory.
    """
    if not len(runs):
        return np.zeros((0, 0, 0), bool)
    check_rle(runs)
    height, width = runs[0]["size"]
    # pycocotools would write past the memory that it did not get.
    try:
        return np.asarray(PackedMasks([without_empty_runs(run) for run in runs], (height, width)))
    except MemoryError as error:
        raise ValueError(
            f"{len(runs)} masks of {width}×{height} pixels do not fit in memory: unpack a few at a time, or keep them "
            "packed (packed=True)"
        ) from error


def join_rle(runs: Sequence[Rle]) -> Rle:
    """The union of masks of one image."""
    return text_rle(coco.merge(list(runs)))


def rle_ious(first: Sequence[Rle], second: Sequence[Rle]) -> np.ndarray:
    """(first, second) float32: the IoU of masks of one size; 0 for two empty masks."""
    if not len(first) or not len(second):
        return np.zeros((len(first), len(second)), np.float32)
    return coco.iou(list(first), list(second), [0] * len(second)).astype(np.float32)


def rle_areas(runs: Sequence[Rle]) -> np.ndarray:
    """(masks,) int64: the number of pixels of each mask."""
    chunk = 255  # pycocotools 2.0.11 raises an OverflowError for more masks than that
    areas = [coco.area(list(runs[start : start + chunk])) for start in range(0, len(runs), chunk)]
    return np.concatenate([np.zeros(0), *areas]).astype(np.int64)


def rle_boxes(runs: Sequence[Rle]) -> np.ndarray:
    """(masks, 4) float32: x0, y0, x1, y1, as ``mask_boxes``."""
    boxes = coco.toBbox(list(runs)).reshape(-1, 4) if len(runs) else np.zeros((0, 4))
    boxes[:, 2:] += boxes[:, :2]
    return boxes.astype(np.float32)


# What pycocotools does not offer. On 3840×2160 images with masks 8 to 400 pixels wide, ``crop_rle`` takes 0.14 ms and
# ``coco.decode`` 7 ms a mask; ``encode_edges`` takes 0.1 ms and ``coco.encode`` 3.6 ms. On an image of a gigapixel the
# bitmap alone would take a gigabyte.


def rle_counts(run: Rle) -> np.ndarray:
    """(counts,) int64: alternating numbers of pixels outside and inside the mask, column by column.

    pycocotools reads them but never returns them. Anything that is not a valid string gives an empty array.
    """
    nothing = np.zeros(0, np.int64)
    if not run["counts"].isascii():
        return nothing
    digits = np.frombuffer(run["counts"].encode(), np.uint8) - 48  # five bits each, low bits first, and a flag
    ends = np.flatnonzero(digits & 32 == 0)  # the flag says that the number has another digit
    if not len(ends) or ends[-1] < len(digits) - 1 or digits.max() > 63:
        return nothing
    starts = np.append(0, ends[:-1] + 1)
    if (ends - starts).max() >= MAX_DIGITS:
        return nothing
    shifts = 5 * (np.arange(len(digits)) - starts.repeat(np.diff(starts, append=len(digits))))
    counts = np.add.reduceat((digits & 31).astype(np.int64) << shifts, starts)
    counts -= (digits[ends] & 16 > 0).astype(np.int64) << (shifts[ends] + 5)  # the sign
    for first in (1, 2):  # from the fourth on, the string stores the difference to the count two places before
        counts[first::2] = counts[first::2].cumsum()
    return counts


def check_rle(runs: Sequence[Any]) -> None:
    """Raise a ValueError for what is not run lengths, for several sizes, and for counts that do not fill the size.

    pycocotools refuses some of them, and only when it decodes. Others make it read or write foreign memory.
    """
    for run in runs:
        if not isinstance(run, Mapping) or not isinstance(run.get("counts"), str):
            raise ValueError(
                f'run lengths are {shown(run)}: expected {{"size": [height, width], "counts": "…"}}, as encode_rle '
                "makes them"
            )
        height, width = size_of("the size of run lengths", run.get("size"), ValueError)
        counts = rle_counts({"size": [height, width], "counts": run["counts"]})
        if counts.sum() != height * width or counts.min(initial=0) < 0:
            raise ValueError(f"run lengths of {counts.sum()} pixels do not fill their size of {width}×{height} pixels")
    if len(sizes := {tuple(run["size"]) for run in runs}) > 1:
        raise ValueError(f"run lengths of one size were expected, got {sorted(sizes)}: decode each size alone")


def encode_edges(edges: np.ndarray, size_hw: tuple[int, int]) -> Rle:
    """The RLE of a mask from the pixels at which it starts and ends, counted column by column.

    Args:
        edges: (edges,) int, in any order. A pixel that occurs twice is no edge: there a run ends at the bottom of a
            column and continues at the top of the next.
        size_hw: Size of the image.
    """
    pixels, times = np.unique(edges, return_counts=True)
    counts = np.diff(pixels[times % 2 == 1], prepend=0, append=size_hw[0] * size_hw[1])
    counts = counts[:-1] if counts[-1] == 0 else counts  # as pycocotools writes them
    return text_rle(coco.frPyObjects({"size": list(size_hw), "counts": counts}, *size_hw))


def without_empty_runs(run: Rle) -> Rle:
    """The same mask without runs of zero pixels, which some encoders write and pycocotools misreads (merge, IoU)."""
    counts = rle_counts(run)
    if counts[1:].all():
        return run
    height, width = run["size"]
    return encode_edges(counts.cumsum(), (height, width))


def crop_rle(run: Rle, box: Sequence[int]) -> np.ndarray:
    """(y1 - y0, x1 - x0) bool: the part of a mask inside ``box`` (x0, y0, x1, y1), outside of which it has no pixel."""
    x0, y0, x1, y1 = box
    height, edges = run["size"][0], rle_counts(run).cumsum()
    ends = edges[1::2]
    starts = edges[0::2][: len(ends)]
    starts, ends = starts[ends > starts], ends[ends > starts]
    # A run may span several columns: it is cut into one run for each.
    first, last = starts // height, (ends - 1) // height
    spans = last - first + 1
    run_of = np.arange(len(starts)).repeat(spans)
    columns = first[run_of] + np.arange(len(run_of)) - (spans.cumsum() - spans)[run_of]
    tops = np.where(columns == first[run_of], starts[run_of] % height, 0)
    bottoms = np.where(columns == last[run_of], (ends[run_of] - 1) % height + 1, height)
    steps = np.zeros((x1 - x0, y1 - y0 + 1), np.int8)
    np.add.at(steps, (columns - x0, tops - y0), 1)
    np.add.at(steps, (columns - x0, bottoms - y0), -1)
    return np.ascontiguousarray(steps.cumsum(1, dtype=np.int8)[:, :-1].T > 0)
