"""load(): one object with the verbs people use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch

from masklet import checkpoints
from masklet.config import SizeHW
from masklet.engine import Engine, make_engine
from masklet.errors import ConfigError, DeviceError
from masklet.everything.generator import everything, everything_packed, read_options
from masklet.everything.tiles import everything_tiled
from masklet.image import EncodedImage
from masklet.images.reading import read_image
from masklet.model.sam2 import Sam2Model
from masklet.processing import Sam2ImageProcessor
from masklet.results import Masks
from masklet.video.frames import open_video
from masklet.video.policy import MAX_PROMPTED, MemoryPolicy, make_policy
from masklet.video.session import VideoSession
from masklet.video.stream import VideoStream

MAX_OBJECTS = 16
"""In one batch of the tracker."""


@dataclass(frozen=True)
class Segmenter:
    """A model and how its images are prepared. It holds no state: threads may share it."""

    engine: Engine
    image_processor: Sam2ImageProcessor

    @property
    def model(self) -> Sam2Model:
        """The network, for training and export; what segments is the engine."""
        return self.engine.model

    def image(self, image: Any, *, resolution: int | SizeHW | None = None) -> EncodedImage:
        """Encode an image, to be prompted as often as one likes.

        Args:
            image: A path, a binary file, a PIL image, an array (height, width[, 1, 3 or 4]) or a tensor
                (3, height, width); see ``masklet.images.reading.read_image``.
            resolution: Input size of the network instead of the one it was trained at: a side or (height, width),
                multiples of 32. Smaller is faster; larger shows smaller objects.

        Raises:
            ImageError: It is no image.
            ConfigError: A resolution that does not fit.
        """
        return EncodedImage.encode(self.engine, read_image(image), self._processor(resolution))

    @overload
    def everything(
        self,
        image: Any,
        *,
        resolution: int | SizeHW | None = None,
        output: Literal["masks"] = "masks",
        tile: None = None,
        **options: Any,
    ) -> Masks: ...

    @overload
    def everything(
        self,
        image: Any,
        *,
        resolution: int | SizeHW | None = None,
        output: Literal["rle"],
        tile: None = None,
        **options: Any,
    ) -> list[dict[str, Any]]: ...

    @overload
    def everything(
        self,
        image: Any,
        *,
        resolution: int | SizeHW | None = None,
        output: Literal["masks", "rle"] = "rle",
        tile: int,
        overlap: int | None = None,
        **options: Any,
    ) -> Iterator[dict[str, Any]]: ...

    def everything(
        self,
        image: Any,
        *,
        resolution: int | SizeHW | None = None,
        output: Literal["masks", "rle"] = "masks",
        tile: int | None = None,
        overlap: int | None = None,
        **options: Any,
    ) -> Masks | list[dict[str, Any]] | Iterator[dict[str, Any]]:
        """All masks of an image, without being told where to look.

        Args:
            image: As in ``image``; with ``tile`` also an image that does not fit in memory: a TIFF, read in parts
                (``pip install masklet[tiff]``), or an array that is a memory map.
            resolution: As in ``image``.
            output: ``"masks"``, or ``"rle"`` for COCO instances (plain dicts with run lengths, as ``Masks.to_coco``
                makes them), of which many more fit in memory.
            tile: Look at the image in squares of so many pixels, and join what neighbours see of one object. What
                comes is always an iterator of COCO instances, in the order of tiles: write each as it comes, or read
                all with ``Masks.from_coco(…, packed=True)``.
            overlap: Pixels by which tiles overlap at least; an eighth of ``tile`` if None. An object is best found if
                it fits in there.
            options: What to look for, see ``masklet.everything.Options``: ``points_per_side=32``, ``crops=0`` with
                ``crop_overlap``, ``crop_points_divisor=1`` and ``crop_nms=0.7``, ``iou_threshold=0.8``,
                ``stability_threshold=0.95`` with ``stability_offset=1.0``, ``box_nms=0.7``, ``min_area=0``,
                ``refine=False``.

        Returns:
            From high to low scores, an object of its own each; maybe none.

        Raises:
            ImageError: It is no image, or too small for so many crops.
            ConfigError: An option that makes no sense.
        """
        if output not in ("masks", "rle"):
            raise ConfigError(f"output is {output!r}: expected 'masks' or 'rle'")
        if overlap is not None and tile is None:
            raise ConfigError(f"overlap is {overlap}, and there are no tiles: expected tile=…, too")
        what, processor = read_options(options, "resolution", "output", "tile", "overlap"), self._processor(resolution)
        if tile is not None:
            return everything_tiled(self.engine, processor, image, what, tile=tile, overlap=overlap)
        if output == "rle":
            return everything_packed(self.engine, processor, read_image(image), what).to_coco()
        return everything(self.engine, processor, read_image(image), what)

    def video(
        self,
        video: Any,
        *,
        resolution: int | SizeHW | None = None,
        policy: str | MemoryPolicy = "paper",
        max_prompted: int | None = MAX_PROMPTED,
        max_objects: int = MAX_OBJECTS,
    ) -> VideoSession:
        """Open a video, to prompt objects in it and track them.

        Args:
            video: A video file, a folder of images in natural order, or any iterable of images.
            resolution: As in ``image``.
            policy: Which frames' memories a frame reads: ``"paper"``, or a ``masklet.video.policy.MemoryPolicy``.
            max_prompted: With ``policy="paper"``, a frame reads at most this many prompted frames, the nearest; all of
                them if None.
            max_objects: The largest batch of objects; any number may be tracked. Prompts for one object do not change
                another: to the bit on a CPU, and elsewhere with 1; in larger batches there, up to rounding.

        Raises:
            VideoError: It is not a video.
            CheckpointError: The model was saved without its memory.
            PromptError: ``max_prompted`` or ``max_objects`` is less than 1.
            ConfigError: There is no such policy.
        """
        opened = open_video(video)
        chosen = make_policy(
            policy, num_maskmem=self.engine.config.num_maskmem, max_prompted=max_prompted, length=opened.count
        )
        return VideoSession(self.engine, self._processor(resolution), opened, chosen, max_objects=max_objects)

    def resume(self, path: str | os.PathLike[str], video: Any = None) -> VideoSession:
        """Continue a session that ``VideoSession.save`` or ``VideoSession.track(autosave=…)`` saved.

        Args:
            path: The saved session.
            video: Where its video is now, if it is no longer where it was, or if it was no file: as in ``video``.

        Raises:
            SessionError: It is no such file, damaged, or of another version, model or video; or its video is gone.
            VideoError: ``video`` is no video.
        """
        return VideoSession.resume(self.engine, path, video)

    def stream(
        self,
        *,
        resolution: int | SizeHW | None = None,
        policy: str | MemoryPolicy = "paper",
        max_prompted: int = MAX_PROMPTED,
        max_objects: int = MAX_OBJECTS,
        fps: float = 30.0,
    ) -> VideoStream:
        """Track objects through frames that arrive one at a time, without an end.

        Args:
            resolution: As in ``image``.
            policy: As in ``video``.
            max_prompted: As in ``video``.
            max_objects: As in ``video``.
            fps: Frames in a second, for the time of each result.

        Raises:
            CheckpointError: The model was saved without its memory.
            PromptError: ``max_prompted`` or ``max_objects`` is less than 1; ``fps`` is not positive.
            ConfigError: There is no such policy.
        """
        chosen = make_policy(policy, num_maskmem=self.engine.config.num_maskmem, max_prompted=max_prompted)
        return VideoStream(self.engine, self._processor(resolution), chosen, max_objects=max_objects, fps=fps)

    def _processor(self, resolution: int | SizeHW | None) -> Sam2ImageProcessor:
        return self.image_processor if resolution is None else Sam2ImageProcessor(resolution)

    def open(self, path: str | os.PathLike[str]) -> EncodedImage:
        """Open an encoded image that ``EncodedImage.save`` wrote, without encoding anything."""
        return EncodedImage.open(self.engine, path)


def load(
    name: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
    dtype: Literal["auto"] | torch.dtype = "auto",
    *,
    engine: str = "auto",
    revision: str | None = None,
    token: str | None = None,
) -> Segmenter:
    """Load a model.

    Args:
        name: None for the embedded model; a name of ``masklet models``, a Hub repository, a model folder, or one of
            Meta's ``.pt`` files.
        device: ``"auto"`` is CUDA, then MPS, then the CPU.
        dtype: Of weights and computation; ``"auto"`` is float32.
        engine: How the network runs, see ``masklet.engine.make_engine``: ``"auto"``, ``"eager"`` or ``"cpu"``.
        revision: Branch, tag or commit of a Hub repository.
        token: For a private Hub repository.

    Raises:
        CheckpointError: The model cannot be found, is damaged, or is of another kind.
        DeviceError: The device is not there.
    """
    name = checkpoints.EMBEDDED if name is None else name
    place = find_device(device)
    if dtype != "auto" and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConfigError(f"dtype is {dtype!r}: expected 'auto' or a floating-point torch.dtype")
    model = Sam2Model.from_pretrained(name, revision=revision, token=token)
    model = model.to(place, torch.float32 if dtype == "auto" else dtype)
    return Segmenter(
        make_engine(model, engine), Sam2ImageProcessor.from_pretrained(name, revision=revision, token=token)
    )


def find_device(device: str | torch.device) -> torch.device:
    """The device that is meant, or a DeviceError if it is not there."""
    if device == "auto":
        has_mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"no device {device!r}: expected auto, cpu, cuda, cuda:N or mps") from error
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # an assertion where torch was built without it
        raise DeviceError(
            f"device {str(device)!r} is not available here (torch {torch.__version__}, "
            f"{torch.cuda.device_count()} CUDA devices): use device='cpu' or 'auto', or install a torch built for it"
        ) from error
    return place
