"""load(): one object that segments images and videos."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from masklet import checkpoints
from masklet.config import LARGEST, SIDE_MULTIPLE, SizeHW
from masklet.detection import DEFAULT_THRESHOLD, Words
from masklet.engine import Engine, check_engine, make_engine
from masklet.errors import ConfigError, DeviceError
from masklet.everything.generator import everything
from masklet.everything.options import EverythingKeywords, EverythingOptions
from masklet.everything.tiles import everything_tiled
from masklet.image import EncodedImage
from masklet.images.options import Bands, ImageOptions, ValueRange
from masklet.images.reading import read_image
from masklet.model.sam2 import Sam2Model
from masklet.numbers import shown
from masklet.processing import ImageProcessor
from masklet.results import Masks
from masklet.video.frames import open_video
from masklet.video.policies import make_policy
from masklet.video.policy import MAX_PROMPTED, MemoryPolicy
from masklet.video.session import VideoSession
from masklet.video.stream import VideoStream

if TYPE_CHECKING:
    from typing_extensions import Unpack

MAX_OBJECTS = 16
"""Objects in one batch of the tracker."""
IMAGE_KEYWORDS = ("resolution", "value_range", "bands", "nodata")
"""Keyword arguments that all methods for images and videos share."""
WORD_KEYWORDS = ("text", "detector", "detection_threshold")
DTYPES = {
    "auto": torch.float32,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class HasNetwork(Protocol):
    """A drop-in model, whose plain network shares its weights."""

    training: bool

    @property
    def network(self) -> Sam2Model:
        """The plain network."""


@dataclass(frozen=True)
class Segmenter:
    """A model, and how its images are prepared. It has no state and is thread-safe. Made by ``load``."""

    engine: Engine
    image_processor: ImageProcessor

    @classmethod
    def from_model(
        cls, model: Sam2Model | HasNetwork, image_processor: ImageProcessor | None = None, *, engine: str = "auto"
    ) -> Segmenter:
        """Makes a segmenter from an existing network, such as one that was fine-tuned or has LoRA adapters.

        Args:
            model: In evaluation mode, on the device and in the precision it will run in. For a PEFT model, pass its
                ``get_base_model()``. Models of ``masklet.compat.transformers`` are taken as well.
            image_processor: How images are prepared; None prepares them as for published checkpoints, at the size of
                ``model.config``.
            engine: As in ``load``.

        Raises:
            ConfigError: The network is in training mode; there is no such engine, or it cannot run the network.
        """
        if model.training:
            raise ConfigError("the model is in training mode: call model.eval() first")
        network = model if isinstance(model, Sam2Model) else model.network
        return cls(make_engine(network, engine), image_processor or ImageProcessor(network.config.image_size))

    @property
    def model(self) -> Sam2Model:
        """The network, for training and export; the engine is what segments, and notices when weights have changed."""
        return self.engine.model

    def image(
        self,
        image: Any,
        *,
        resolution: int | SizeHW | None = None,
        value_range: ValueRange | None = None,
        bands: Bands | None = None,
        nodata: float | None = None,
    ) -> EncodedImage:
        """Encodes an image once, so that it can be prompted many times.

        Args:
            image: A path, a binary file, a PIL image, an array (height, width[, 1, 3 or 4]) or a tensor
                (3, height, width); see ``masklet.images.reading.read_image``.
            resolution: Input size of the network instead of the model's own: a side or (height, width), multiples of
                32. A smaller one is faster, a larger one shows smaller objects.
            value_range: (low, high), the values that become black and white, for images that do not use the range of
                their type (12 bits in uint16, CT, satellites); ``"auto"`` uses percentiles of the image. See
                ``masklet.images.options.ImageOptions``.
            bands: The channels that become red, green and blue, counted from 0, or the one that becomes grey.
            nodata: The value of missing pixels, which become black; it may be NaN.

        Raises:
            ImageError: It is not an image, or its values have no natural range and none was given.
            ConfigError: ``resolution`` is not a multiple of 32; ``value_range``, ``bands`` or ``nodata`` is invalid.

        Warns:
            ImageWarning: Hardly any of the range of values is used.
        """
        options = ImageOptions(value_range=value_range, bands=bands, nodata=nodata)
        return EncodedImage.encode(self.engine, read_image(image, options), self._processor(resolution))

    def everything(
        self,
        image: Any,
        *,
        packed: bool = False,
        resolution: int | SizeHW | None = None,
        value_range: ValueRange | None = None,
        bands: Bands | None = None,
        nodata: float | None = None,
        text: Words | None = None,
        detector: Any = None,
        detection_threshold: float = DEFAULT_THRESHOLD,
        **options: Unpack[EverythingKeywords],
    ) -> Masks:
        """Finds all masks of an image without prompts, or all objects that words name.

        Args:
            image: As in ``image``.
            packed: Whether to keep the masks as run lengths, without logits, so that thousands of masks of a large
                image fit in memory; ``to_coco`` turns both kinds into the same plain dicts.
            resolution: As in ``image``.
            value_range: As in ``image``.
            bands: As in ``image``.
            nodata: As in ``image``.
            text: Words, such as ["car", "person"], to find only what they name, with ``detector`` and
                ``detection_threshold`` as in ``EncodedImage.predict``. The masks have ``labels``.
            detector: As in ``EncodedImage.predict``.
            detection_threshold: As in ``EncodedImage.predict``.
            options: Options of the grid and of the filters, see ``masklet.everything.options.EverythingOptions``:
                ``points_per_side=32``, ``crops=0`` with ``crop_overlap``, ``crop_points_divisor=1`` and
                ``crop_nms=0.7``, ``iou_threshold``, ``stability_threshold`` with ``stability_offset=1.0``,
                ``box_nms=0.7``, ``min_area=0``, ``refine=False``. The two thresholds default to the model's own.

        Returns:
            Masks from high to low predicted IoU, each with an object id of its own. There may be none.

        Raises:
            ImageError: It is not an image, as in ``image``, or it is too small for the crops.
            ConfigError: An option is unknown or its value is invalid.
        """
        if text is not None or detector is not None:
            if options:
                raise ConfigError(f"{next(iter(options))} is an option of the grid of points, which text does not use")
            shared: Any = {"value_range": value_range, "bands": bands, "nodata": nodata}
            encoded = self.image(image, resolution=resolution, **shared)
            words: Any = {"text": text, "detector": detector, "detection_threshold": detection_threshold}
            return encoded.predict(packed=packed, **words)
        chosen = EverythingOptions.for_model(self.engine.config, options, "packed", *WORD_KEYWORDS, *IMAGE_KEYWORDS)
        pixels = read_image(image, ImageOptions(value_range=value_range, bands=bands, nodata=nodata))
        return everything(self.engine, self._processor(resolution), pixels, chosen, packed=packed)

    def everything_tiled(
        self,
        image: Any,
        *,
        tile: int = 1024,
        overlap: int | None = None,
        resolution: int | SizeHW | None = None,
        value_range: ValueRange | None = None,
        bands: Bands | None = None,
        nodata: float | None = None,
        **options: Unpack[EverythingKeywords],
    ) -> Iterator[dict[str, Any]]:
        """Finds all masks of an image that does not fit in memory, tile by tile.

        Masks of one object in neighbouring tiles are joined. Objects that fit in the overlap are found best.

        Args:
            image: As in ``image``; also a memory map, or a TIFF, which is read in parts (``pip install
                masklet[tiff]``).
            tile: Side of a tile, in pixels.
            overlap: Least overlap of neighbouring tiles, in pixels; an eighth of ``tile`` if None.
            resolution: As in ``image``; of each tile.
            value_range: As in ``image``; ``"auto"`` finds one range for all tiles.
            bands: As in ``image``.
            nodata: As in ``image``.
            options: As in ``everything``; of each tile.

        Returns:
            An iterator of COCO instances (plain dicts with run lengths, as ``Masks.to_coco`` makes them), in the order
            of tiles. Write each as it comes, or read all with ``Masks.from_coco(..., packed=True)``.

        Raises:
            ImageError: It is not an image, or has more pixels than COCO's tools can count.
            ConfigError: ``tile``, ``overlap`` or an option is invalid.
        """
        chosen = EverythingOptions.for_model(self.engine.config, options, "tile", "overlap", *IMAGE_KEYWORDS)
        image_options = ImageOptions(value_range=value_range, bands=bands, nodata=nodata)
        return everything_tiled(
            self.engine,
            self._processor(resolution),
            image,
            chosen,
            tile=tile,
            overlap=overlap,
            image_options=image_options,
        )

    def video(
        self,
        video: Any,
        *,
        resolution: int | SizeHW | None = None,
        policy: str | MemoryPolicy = "paper",
        max_prompted: int | None = MAX_PROMPTED,
        max_objects: int = MAX_OBJECTS,
        value_range: ValueRange | None = None,
        bands: Bands | None = None,
        nodata: float | None = None,
    ) -> VideoSession:
        """Opens a video, in which objects are prompted and tracked.

        Args:
            video: A video file, a TIFF stack or animation, a folder of images in natural order, an array (frames,
                height, width[, channels]), or any iterable of images.
            resolution: As in ``image``.
            policy: Which memories a frame reads, and which candidate it keeps: ``"paper"``, ``"sam3"``, ``"samurai"``,
                ``"dam4sam"``, ``"sam2long"``, or a ``masklet.video.policy.MemoryPolicy``. See docs/tracking.md.
            max_prompted: The maximum number of prompted frames that a frame reads, the nearest ones; policies other
                than the paper's always read the first one. None for all of them, with ``policy="paper"``.
            max_objects: Objects in one batch; any number may be tracked. Objects do not affect each other: to the bit
                on a CPU and, on other devices, with 1. In larger batches there, the order of sums may change.
            value_range: As in ``image``, for videos of images. All frames share one range: ``"auto"`` finds it in some
                frames of a folder or sequence, and in the first frame of any other iterable.
            bands: As in ``image``, for videos of images.
            nodata: As in ``image``, for videos of images.

        Raises:
            VideoError: It is not a video.
            CheckpointError: The model has no memory.
            PromptError: ``max_prompted`` or ``max_objects`` is less than 1.
            ConfigError: There is no such policy; ``value_range``, ``bands`` or ``nodata`` is invalid.
        """
        opened = open_video(video, ImageOptions(value_range=value_range, bands=bands, nodata=nodata))
        chosen = make_policy(
            policy, num_maskmem=self.engine.config.num_maskmem, max_prompted=max_prompted, length=opened.count
        )
        return VideoSession(self.engine, self._processor(resolution), opened, chosen, max_objects=max_objects)

    def resume(
        self, path: str | os.PathLike[str], video: Any = None, *, policy: MemoryPolicy | None = None
    ) -> VideoSession:
        """Continues a session that ``VideoSession.save`` or ``VideoSession.track(autosave=...)`` saved.

        Args:
            path: The saved session.
            video: As in ``video``, if the video has moved or was not a file.
            policy: The memory policy, if it was one of your own.

        Raises:
            SessionError: It is not a saved session, is damaged, or was saved by another version, with another model or
                for another video; or its video is gone.
            VideoError: ``video`` is not a video.
        """
        return VideoSession.resume(self.engine, self.image_processor, path, video, policy)

    def stream(
        self,
        *,
        resolution: int | SizeHW | None = None,
        policy: str | MemoryPolicy = "paper",
        max_prompted: int = MAX_PROMPTED,
        max_objects: int = MAX_OBJECTS,
        fps: float = 30.0,
        value_range: ValueRange | None = None,
        bands: Bands | None = None,
        nodata: float | None = None,
    ) -> VideoStream:
        """Tracks objects through frames that arrive one at a time, without end.

        Args:
            resolution: As in ``image``.
            policy: As in ``video``.
            max_prompted: As in ``video``, but not None.
            max_objects: As in ``video``.
            fps: Frames per second, for the time of each result.
            value_range: As in ``image``; ``"auto"`` finds the range of the first frame and keeps it.
            bands: As in ``image``.
            nodata: As in ``image``.

        Raises:
            CheckpointError: The model has no memory.
            PromptError: ``max_prompted`` or ``max_objects`` is less than 1; ``fps`` is not positive.
            ConfigError: There is no such policy; ``value_range``, ``bands`` or ``nodata`` is invalid.
        """
        chosen = make_policy(policy, num_maskmem=self.engine.config.num_maskmem, max_prompted=max_prompted)
        options = ImageOptions(value_range=value_range, bands=bands, nodata=nodata)
        return VideoStream(
            self.engine, self._processor(resolution), chosen, max_objects=max_objects, fps=fps, image_options=options
        )

    def _processor(self, resolution: int | SizeHW | None) -> ImageProcessor:
        return _resized(self.image_processor, resolution)

    def load_image(self, path: str | os.PathLike[str]) -> EncodedImage:
        """Loads an encoded image that ``EncodedImage.save`` wrote, without encoding it again.

        Raises:
            CheckpointError: The file is missing, damaged, of another kind, or was written with another encoder.
        """
        return EncodedImage.load(self.engine, path)


@torch.inference_mode(False)  # the model can be trained, whatever the mode around the call
def load(
    name: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    engine: str = "auto",
    resolution: int | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Segmenter:
    """Loads a model.

    Args:
        name: None for the embedded model; a name of ``masklet models``, a Hub repository, a model folder, or one of
            Meta's ``.pt`` files.
        device: ``"auto"`` is CUDA, then MPS, then the CPU.
        dtype: Dtype of weights and computation: ``"float32"``, ``"bfloat16"``, ``"float16"`` or a floating-point
            ``torch.dtype``. ``"auto"`` is float32, except that the ``cpu`` and ``cuda`` engines multiply matrices in
            bfloat16 where the device has instructions for that: masks hardly differ, and come sooner.
        engine: How the network runs: ``"eager"`` on any device, ``"cpu"`` with float32 weights on a CPU, faster there,
            ``"cuda"`` on a CUDA device; ``"auto"`` is the fastest one that can run the model.
        resolution: Side of the square input, a multiple of 32, instead of the one the model was saved with. Meta's
            ``.pt`` files do not store it and are run at 1,024 pixels: give it if they were fine-tuned at another size.
            ``model.save_pretrained`` stores it.
        revision: Branch, tag or commit of a Hub repository.
        token: Token for a private Hub repository.

    Raises:
        CheckpointError: The model cannot be found, is damaged, or is of another kind.
        ConfigError: ``dtype``, ``engine`` or ``resolution`` is invalid, or the engine cannot run the model.
        DeviceError: The device is not available.
    """
    name = checkpoints.EMBEDDED if name is None else name
    place, precision = find_device(device), find_dtype(dtype)
    check_engine(engine)
    check_resolution(resolution)
    model = Sam2Model.from_pretrained(name, resolution=resolution, revision=revision, token=token)
    processor = ImageProcessor.from_pretrained(name, revision=revision, token=token)
    return Segmenter(
        make_engine(model.to(place, precision), engine, mixed=dtype == "auto"), _resized(processor, resolution)
    )


def check_resolution(side: int | None) -> None:
    """Raises a ConfigError unless this can be a model's own input size."""
    if side is not None and (type(side) is not int or side % SIDE_MULTIPLE or not 1 <= side <= LARGEST):
        raise ConfigError(
            f"resolution is {shown(side)}: expected the side of a square, a multiple of {SIDE_MULTIPLE} pixels. "
            "For other shapes give resolution=(height, width) with each image"
        )


def find_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating-point dtype, from its name or from the dtype itself.

    Raises:
        ConfigError: There is no such dtype, or it is not a floating-point one.
    """
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    raise ConfigError(f"dtype is {dtype!r}: expected {', '.join(DTYPES)}, or a floating-point torch.dtype")


def _resized(processor: ImageProcessor, resolution: int | SizeHW | None) -> ImageProcessor:
    """The processor for another input size, if one is given."""
    return processor if resolution is None else processor.with_size(resolution)


def find_device(device: str | torch.device) -> torch.device:
    """The device of this name.

    Raises:
        DeviceError: There is no such device, or it is not available.
    """
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
