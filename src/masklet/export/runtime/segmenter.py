"""One object that segments images and videos with onnxruntime, and without torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from masklet.config import Sam2Config, Sam2EverythingConfig
from masklet.errors import ConfigError
from masklet.everything.options import EverythingKeywords, EverythingOptions
from masklet.export.runtime.everything import everything
from masklet.export.runtime.image import OnnxImage
from masklet.export.runtime.network import OnnxNetwork, Options
from masklet.export.runtime.processing import ArrayProcessor
from masklet.export.runtime.tracking import check_can_track
from masklet.export.runtime.video import OnnxStream, OnnxVideo
from masklet.images.options import Bands, ImageOptions, ValueRange
from masklet.images.reading import read_image
from masklet.numbers import shown, whole_number
from masklet.results import Masks
from masklet.video.frames import open_video
from masklet.video.policy import MAX_PROMPTED, PaperPolicy

if TYPE_CHECKING:
    from typing_extensions import Unpack

MAX_OBJECTS = 16
"""Objects in one batch of the tracker."""


@dataclass(frozen=True)
class OnnxSegmenter:
    """An exported model with the verbs of ``masklet.Segmenter``. Thread-safe. Made by ``load(folder, engine="onnx")``.

    The input size is that of the export.
    """

    network: OnnxNetwork

    def __repr__(self) -> str:
        height, width = self.network.manifest.input_hw
        return f"OnnxSegmenter({self.network.folder}, {width}×{height}, {self.network.providers[0][0]})"

    def image(
        self,
        image: Any,
        *,
        value_range: ValueRange | None = None,
        bands: Bands | None = None,
        nodata: float | None = None,
    ) -> OnnxImage:
        """Encodes an image once, so that it can be prompted many times: see ``Segmenter.image``."""
        pixels = read_image(image, ImageOptions(value_range=value_range, bands=bands, nodata=nodata))
        processor = ArrayProcessor(self.network.manifest)
        return OnnxImage(self.network, self.network.encode(processor.pixel_values(pixels)), pixels)

    def everything(
        self,
        image: Any,
        *,
        packed: bool = False,
        value_range: ValueRange | None = None,
        bands: Bands | None = None,
        nodata: float | None = None,
        **options: Unpack[EverythingKeywords],
    ) -> Masks:
        """Finds all masks of an image, without prompts: see ``Segmenter.everything``."""
        thresholds = Sam2EverythingConfig(**self.network.manifest.everything)
        keywords = ("packed", "value_range", "bands", "nodata")
        chosen = EverythingOptions.for_model(Sam2Config(everything=thresholds), options, *keywords)
        pixels = read_image(image, ImageOptions(value_range=value_range, bands=bands, nodata=nodata))
        return everything(self.network, pixels, chosen, packed=packed)

    def video(
        self,
        video: Any,
        *,
        policy: str | PaperPolicy = "paper",
        max_prompted: int | None = MAX_PROMPTED,
        max_objects: int = MAX_OBJECTS,
        value_range: ValueRange | None = None,
        bands: Bands | None = None,
        nodata: float | None = None,
    ) -> OnnxVideo:
        """Opens a video, in which objects are prompted and tracked: see ``Segmenter.video``."""
        check_can_track(self.network, max_objects)
        opened = open_video(video, ImageOptions(value_range=value_range, bands=bands, nodata=nodata))
        num_maskmem = self.network.manifest.num_maskmem
        chosen = paper_policy(policy, PaperPolicy(num_maskmem, max_prompted, opened.count))
        return OnnxVideo(self.network, opened, chosen, max_objects=max_objects)

    def stream(
        self,
        *,
        policy: str | PaperPolicy = "paper",
        max_prompted: int = MAX_PROMPTED,
        max_objects: int = MAX_OBJECTS,
        fps: float = 30.0,
        value_range: ValueRange | None = None,
        bands: Bands | None = None,
        nodata: float | None = None,
    ) -> OnnxStream:
        """Tracks objects through frames that arrive one at a time: see ``Segmenter.stream``."""
        max_objects = check_can_track(self.network, max_objects)
        num_maskmem = self.network.manifest.num_maskmem
        chosen = paper_policy(policy, PaperPolicy(num_maskmem, max_prompted))
        options = ImageOptions(value_range=value_range, bands=bands, nodata=nodata)
        return OnnxStream(self.network, chosen, max_objects=max_objects, fps=fps, image_options=options)


def paper_policy(policy: str | PaperPolicy, default: PaperPolicy) -> PaperPolicy:
    """The policy that was asked for.

    Raises:
        ConfigError: It is not the paper's: other policies read candidates, which this runtime does not keep.
    """
    if policy == "paper":
        return default
    if not isinstance(policy, PaperPolicy):
        raise ConfigError(f"policy is {policy!r}: exported models track with 'paper', or a PaperPolicy")
    return policy


def load_onnx(
    folder: str | os.PathLike[str] | None,
    *,
    provider: str = "cpu",
    provider_options: Options | None = None,
    threads: int | None = None,
) -> OnnxSegmenter:
    """Loads an exported folder: see ``OnnxNetwork`` for arguments and errors."""
    if folder is None:
        raise ConfigError("engine 'onnx' needs an exported folder: masklet export nano --out FOLDER, then load(FOLDER)")
    if not isinstance(folder, str | os.PathLike):
        raise ConfigError(f"the folder is {shown(folder)}: expected a path")
    if threads is not None:
        threads = whole_number("threads", threads, ConfigError, least=1)
    return OnnxSegmenter(OnnxNetwork(folder, provider=provider, provider_options=provider_options, threads=threads))
