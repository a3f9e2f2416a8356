"""The labelling configuration of a project: which tags there are, and what they are called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias
from xml.etree import ElementTree

from masklet.errors import DataError

Output: TypeAlias = Literal["brush", "bitmask", "polygon", "rectangle"]

OUTPUTS: dict[str, tuple[Output, str | None]] = {
    "BrushLabels": ("brush", "brushlabels"),
    "Brush": ("brush", None),
    "BitmaskLabels": ("bitmask", "bitmasklabels"),
    "Bitmask": ("bitmask", None),
    "PolygonLabels": ("polygon", "polygonlabels"),
    "Polygon": ("polygon", None),
    "RectangleLabels": ("rectangle", "rectanglelabels"),
    "Rectangle": ("rectangle", None),
}
"""What a tag can show, and the key of its labels if it has any; those come first that show a mask best."""


@dataclass(frozen=True)
class Control:
    """A tag with which regions are drawn."""

    tag: str
    name: str
    to_name: str
    labels: tuple[str, ...]

    @property
    def output(self) -> Output:
        """What its regions are."""
        return OUTPUTS[self.tag][0]

    @property
    def labels_key(self) -> str | None:
        """The key of its labels in a region, or None if it has none."""
        return OUTPUTS[self.tag][1]

    def label(self, wanted: str | None) -> str | None:
        """The wanted label if the tag has it, else its first one."""
        return wanted if wanted in self.labels else next(iter(self.labels), None)


@dataclass(frozen=True)
class VideoTag:
    """A video, and the tag with which boxes are drawn in it."""

    name: str
    control: str | None
    """The name of the VideoRectangle."""
    frame_rate: float | None
    """Frames per second that the page counts with."""


@dataclass(frozen=True)
class LabelConfig:
    """What of a configuration matters here."""

    data_keys: dict[str, str]
    """Key of each image or video tag in the data of a task."""
    controls: tuple[Control, ...]
    """Tags that can show masks, the best first."""
    video: VideoTag | None

    def control_for(self, to_name: str | None) -> Control:
        """The tag that shows masks of this image tag.

        Raises:
            DataError: There is none.
        """
        for control in self.controls:
            if to_name is None or control.to_name == to_name:
                return control
        raise DataError(
            f"the labelling configuration has no tag that can show a mask: expected one of {', '.join(OUTPUTS)}"
        )


def read_label_config(xml: str) -> LabelConfig:
    """Reads a labelling configuration.

    Raises:
        DataError: It is not XML, or declares entities.
    """
    if "<!" in xml.replace("<!--", ""):
        raise DataError("the labelling configuration has a declaration (<!…): expected plain tags")
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise DataError(f"the labelling configuration is not XML: {error}") from error
    controls = [
        Control(tag.tag, tag.get("name", ""), first_name(tag), labels_of(tag))
        for tag in root.iter()
        if tag.tag in OUTPUTS
    ]
    order = list(OUTPUTS)
    return LabelConfig(
        dict(data_keys(root)), tuple(sorted(controls, key=lambda control: order.index(control.tag))), video_tag(root)
    )


def data_keys(root: ElementTree.Element) -> Iterator[tuple[str, str]]:
    """The names of images and videos, and their keys in the data of a task."""
    for tag in root.iter():
        if tag.tag in ("Image", "Video"):
            yield tag.get("name", ""), tag.get("value", "").removeprefix("$")


def labels_of(tag: ElementTree.Element) -> tuple[str, ...]:
    """The values of the labels in a tag."""
    return tuple(label.get("value", "") for label in tag.iter("Label"))


def first_name(tag: ElementTree.Element) -> str:
    """The first of the tags that a tag is for."""
    return tag.get("toName", "").split(",")[0].strip()


def video_tag(root: ElementTree.Element) -> VideoTag | None:
    """The first video, if there is one."""
    video = next(root.iter("Video"), None)
    if video is None:
        return None
    name = video.get("name", "")
    boxes = next((tag for tag in root.iter("VideoRectangle") if first_name(tag) == name), None)
    return VideoTag(name, None if boxes is None else boxes.get("name"), frame_rate(video))


def frame_rate(video: ElementTree.Element) -> float | None:
    """The frame rate that a video tag states."""
    text = video.get("frameRate") or video.get("framerate") or ""
    try:
        rate = float(text)
    except ValueError:  # "$fps": in the data of each task
        return None
    return rate if 0 < rate < float("inf") else None
