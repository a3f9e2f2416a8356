"""Tracks in the formats of annotation tools and of tracking benchmarks: CVAT, MOT and MOTS."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Literal, TextIO, TypeAlias

from masklet.atomic import naming, replacing
from masklet.errors import VideoError
from masklet.masks import PackedMasks, patch_polygons, patches
from masklet.results.exporters import Categories, Classes, read_classes
from masklet.results.exporters.cvat import document_start, element, points_text
from masklet.video.frame_result import FrameResult

TrackFormat: TypeAlias = Literal["cvat", "mot", "mots"]
SUFFIXES: dict[TrackFormat, str] = {"cvat": ".xml", "mot": ".txt", "mots": ".txt"}


@dataclass(frozen=True, kw_only=True)
class TrackOptions:
    """The options of ``write_tracks``."""

    categories: Categories | None
    names: Sequence[str] | None
    tolerance: float
    every: int
    count: int | None
    known_labels: dict[str, None] = field(default_factory=dict)
    """Labels of masks that were found by words, in the order in which they came."""

    def __post_init__(self) -> None:
        if self.categories is not None and not isinstance(self.categories, str | Mapping):
            raise ValueError(
                f"categories is {self.categories!r}: expected one name for all objects, or {{object id: name}}, since "
                "frames differ in their objects"
            )

    def classes_of(self, result: FrameResult | None) -> Classes:
        """The class of each object of a frame."""
        if self.categories is None and result is not None and result.masks.labels is not None:
            self.known_labels.update(dict.fromkeys(result.masks.labels.tolist()))
        if self.categories is None and self.known_labels:
            labels = [] if result is None or result.masks.labels is None else result.masks.labels.tolist()
            return read_classes(labels, labels, list(self.known_labels) if self.names is None else self.names)
        return read_classes(self.categories, () if result is None else result.object_ids, self.names)


def write_tracks(
    path: str | os.PathLike[str],
    results: Iterable[FrameResult],
    format: TrackFormat | None = None,
    *,
    categories: Categories | None = None,
    names: Sequence[str] | None = None,
    tolerance: float = 0.0,
    every: int = 1,
    count: int | None = None,
) -> None:
    """Writes the tracks of a video. The file appears when all is written, and not at all if there is an error.

    Objects are numbered from 1 in the order in which they were prompted, and so are classes. Objects are left out of
    frames in which their masks are empty.

    - "cvat" (.xml), "CVAT for video 1.1": a track of polygons for each object. All components and holes of a mask are
      one polygon, see ``Masks.to_yolo``: CVAT's tracks hold one shape per frame, and no masks. Where an object
      disappears, its track is "outside".
    - "mot" (.txt), MOT 1.1: frame from 1, object, x, y, width, height of the box in pixels, x and y from 0, score,
      class, visibility (always 1).
    - "mots" (.txt): frame from 1, 1000 × class + object, class, height, width of the image, COCO's run lengths. Masks
      do not overlap: see ``Masks.without_overlap``.

    Args:
        path: Ends in .xml or .txt.
        results: Frames in the video's order, of one size.
        format: The format. .xml is "cvat" anyway.
        categories: The classes: one name for all objects, or {object id: name}. By default the labels of objects that
            were found by words, and otherwise "object".
        names: All classes in the order of their numbers; by default those of ``categories`` in their order.
        tolerance: Leaves out points of CVAT's polygons, see ``Masks.to_polygons``.
        every: Step from each frame to the next. CVAT interpolates between them; after longer gaps, objects start again.
        count: Frames of the video, if known: CVAT's tracks end if the results end before the video.

    Raises:
        VideoError: The file cannot be written; the format does not fit the suffix; there are no frames, or they are in
            another order; packed masks, or 1000 objects, for "mots".
        ValueError: An object has no class; ``tolerance`` is invalid, or not for this format.
    """
    path = Path(path)
    chosen = format_of(path, format)
    if tolerance and chosen != "cvat":
        raise ValueError(f"tolerance={tolerance:g} simplifies polygons, and {chosen!r} has none: leave it out")
    options = TrackOptions(categories=categories, names=names, tolerance=tolerance, every=every, count=count)
    with (
        naming(path, VideoError),
        replacing(path) as unfinished,
        unfinished.open("w", encoding="utf-8", newline="\n") as file,
    ):
        WRITERS[chosen](file, in_order(results), options)


def format_of(path: Path, format: TrackFormat | None) -> TrackFormat:
    """The format of a file.

    Raises:
        VideoError: There is no such format, or the suffix is of another one.
    """
    suffix = path.suffix.lower()
    chosen: TrackFormat | None = "cvat" if format is None and suffix == ".xml" else format
    if chosen not in WRITERS:
        raise VideoError(f"format={format!r} for {path}: expected format='cvat' for .xml, 'mot' or 'mots' for .txt")
    if suffix != SUFFIXES[chosen]:
        raise VideoError(f"cannot write {chosen!r} to {path}: expected a name that ends in {SUFFIXES[chosen]}")
    return chosen


def in_order(results: Iterable[FrameResult]) -> Iterator[FrameResult]:
    """The results, of which there must be one, with rising numbers and one size."""
    first = last = None
    for result in results:
        if last is not None and result.index <= last.index:
            raise VideoError(f"frame {result.index} came after frame {last.index}: expected the video's order")
        first = first or result
        if result.masks.size_hw != first.masks.size_hw:
            raise VideoError(f"frame {result.index} differs in size from frame {first.index}: expected one size")
        last = result
        yield result
    if last is None:
        raise VideoError("there are no tracks to write: expected at least one frame")


# MOT


def write_mot(file: TextIO, results: Iterable[FrameResult], options: TrackOptions) -> None:
    """A line for each object in each frame, see ``write_tracks``."""
    for result in results:
        masks, classes = result.masks, options.classes_of(result)
        rows = zip(
            masks.object_ids.tolist(), masks.boxes.tolist(), masks.iou_scores.tolist(), classes.numbers, strict=True
        )
        for number, (x0, y0, x1, y1), score, class_number in rows:
            if x1 > x0:
                box = f"{x0:.10g},{y0:.10g},{x1 - x0:.10g},{y1 - y0:.10g}"
                file.write(f"{result.index + 1},{number + 1},{box},{score:.4f},{class_number + 1},1\n")


def write_mots(file: TextIO, results: Iterable[FrameResult], options: TrackOptions) -> None:
    """A line for each object in each frame, see ``write_tracks``."""
    for result in results:
        if isinstance(result.masks.masks, PackedMasks):
            raise VideoError("packed masks have no logits to decide overlaps: write 'mots' without packed=True")
        masks, classes = result.masks.without_overlap(), options.classes_of(result)
        height, width = masks.size_hw
        rows = zip(masks.object_ids.tolist(), masks.to_rle(), masks.areas.tolist(), classes.numbers, strict=True)
        for number, rle, area, class_number in rows:
            if number >= 999:
                raise VideoError(f"object number {number + 1} does not fit 'mots', which has 999 for each class")
            if area:
                object_id = 1000 * (class_number + 1) + number + 1
                file.write(f"{result.index + 1} {object_id} {class_number + 1} {height} {width} {rle['counts']}\n")


# CVAT


@dataclass
class CvatTrack:
    """The shapes of one object, which lie in a temporary file until all frames are known."""

    label: str
    points: str | None = None
    """The last shape, as long as the object is visible."""
    places: list[tuple[int, int]] = field(default_factory=list)
    """Begin and length of each shape in the file."""

    def show(self, spool: IO[bytes], frame: int, points: str) -> None:
        """The object has this shape from a frame on."""
        self.points = points
        self.add(spool, frame, points, outside=0)

    def hide(self, spool: IO[bytes], frame: int) -> None:
        """The object is not visible from a frame on."""
        if self.points is not None:
            self.add(spool, frame, self.points, outside=1)
            self.points = None

    def add(self, spool: IO[bytes], frame: int, points: str, *, outside: int) -> None:
        """A shape for the file."""
        shape = element("polygon", frame=frame, keyframe=1, outside=outside, occluded=0, points=points, z_order=0)
        line = f"  {shape}".encode()
        self.places.append((spool.tell(), len(line)))
        spool.write(line)


def write_cvat(file: TextIO, results: Iterable[FrameResult], options: TrackOptions) -> None:
    """A track for each object, see ``write_tracks``. Shapes wait in a temporary file, so memory holds one frame."""
    tracks: dict[int, CvatTrack] = {}
    with tempfile.TemporaryFile() as spool:
        last: FrameResult | None = None
        for result in results:
            if last is not None and result.index - last.index > options.every:
                hide_all(tracks, spool, last.index + options.every)
            add_shapes(tracks, spool, result, options)
            last = result
        assert last is not None
        end = last.index + options.every
        if options.count is not None and end < options.count:
            hide_all(tracks, spool, end)
        file.write(document_start(options.classes_of(None).names, last.masks.size_hw))
        for track_id, (_, track) in enumerate(sorted(tracks.items())):
            file.write(element("track", id=track_id, label=track.label, source="auto").replace("/>\n", ">\n"))
            for begin, length in track.places:
                spool.seek(begin)
                file.write(spool.read(length).decode())
            file.write("</track>\n")
        file.write("</annotations>\n")


def add_shapes(tracks: dict[int, CvatTrack], spool: IO[bytes], result: FrameResult, options: TrackOptions) -> None:
    """Adds a frame to the tracks of its objects."""
    masks, labels = result.masks, options.classes_of(result).labels
    numbers = masks.object_ids.tolist()
    for number in tracks.keys() - set(numbers):  # tracked only up to an earlier frame
        tracks[number].hide(spool, result.index)
    for number, label, patch in zip(numbers, labels, patches(masks.masks), strict=True):
        polygons = patch_polygons(patch, tolerance=options.tolerance)
        if polygons:
            rings = list(chain.from_iterable(polygon.rings for polygon in polygons))
            tracks.setdefault(number, CvatTrack(label)).show(spool, result.index, points_text(rings))
        elif number in tracks:
            tracks[number].hide(spool, result.index)


def hide_all(tracks: dict[int, CvatTrack], spool: IO[bytes], frame: int) -> None:
    """No object is visible from a frame on."""
    for track in tracks.values():
        track.hide(spool, frame)


Writer: TypeAlias = Callable[[TextIO, Iterable[FrameResult], TrackOptions], None]
WRITERS: dict[TrackFormat, Writer] = {"cvat": write_cvat, "mot": write_mot, "mots": write_mots}
