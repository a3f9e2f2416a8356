"""load(): one object that segments images and videos."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from masklet import checkpoints
from masklet.config import SIDE_MULTIPLE, SizeHW
from masklet.engine import Engine, check_engine, make_engine
from masklet.errors import ConfigError, DeviceError
from masklet.everything.generator import everything
from masklet.everything.options import EverythingKeywords, EverythingOptions
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

if TYPE_CHECKING:
    from typing_extensions import Unpack

MAX_OBJECTS = 16
"""Objects in one batch of the tracker."""
DTYPES = {
    "auto": torch.float32,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Segmenter:
    """A model, and how its images are prepared. It holds no state and is thread-safe. Made by ``load``."""

    engine: Engine
    image_processor: Sam2ImageProcessor

    @classmethod
    def from_model(
        cls, model: Sam2Model, image_processor: Sam2ImageProcessor | None = None, *, engine: str = "auto"
    ) -> Segmenter:
        """A segmenter for a network at hand, such as one that was trained or has LoRA adapters.

        Args:
            model: In evaluation mode, on the device and in the precision it is to run in. Of a PEFT model, pass
                ``get_base_model()``.
            image_processor: How images are prepared; None for that of published checkpoints, at the size of
                ``model.config``.
            engine: As in ``load``.

        Raises:
            ConfigError: The network is in training mode, or there is no such engine or it cannot run the network.
        """
        if model.training:
            raise ConfigError("the model is in training mode: call model.eval() first")
        return cls(make_engine(model, engine), image_processor or Sam2ImageProcessor(model.config.image_size))

    @property
    def model(self) -> Sam2Model:
        """The network, for training and export; the engine is what segments."""
        return self.engine.model

    def image(self, image: Any, *, resolution: int | SizeHW | None = None) -> EncodedImage:
        """Encodes an image once, so that it can be prompted many times.

        Args:
            image: A path, a binary file, a PIL image, an array (height, width[, 1, 3 or 4]) or a tensor
                (3, height, width); see ``masklet.images.reading.read_image``.
            resolution: Input size of the network instead of the model's own: a side or (height, width), multiples of
                32. A smaller one is faster, a larger one shows smaller objects.

        Raises:
            ImageError: It is not an image.
            ConfigError: ``resolution`` is not a multiple of 32.
        """
        return EncodedImage.encode(self.engine, read_image(image), self._processor(resolution))

    def everything(
        self,
        image: Any,
        *,
        packed: bool = False,
        resolution: int | SizeHW | None = None,
        **options: Unpack[EverythingKeywords],
    ) -> Masks:
        """Finds all masks of an image, without prompts.

        Args:
            image: As in ``image``.
            packed: Whether to keep the masks as run lengths, without logits, so that thousands of a large image fit in
                memory; ``to_coco`` turns both kinds into the same plain dicts.
            resolution: As in ``image``.
            options: Of the grid and of the filters, see ``masklet.everything.options.EverythingOptions``:
                ``points_per_side=32``, ``crops=0`` with ``crop_overlap``, ``crop_points_divisor=1`` and
                ``crop_nms=0.7``, ``iou_threshold``, ``stability_threshold`` with ``stability_offset=1.0``,
                ``box_nms=0.7``, ``min_area=0``, ``refine=False``. The two thresholds default to the model's own.

        Returns:
            Masks from high to low predicted IoU, each with an object id of its own. There may be none.

        Raises:
            ImageError: It is not an image, or too small for the crops.
            ConfigError: An option is unknown or its value is invalid.
        """
        chosen = EverythingOptions.for_model(self.engine.config, options, "packed", "resolution")
        processor = self._processor(resolution)
        return everything(self.engine, processor, read_image(image), chosen, packed=packed)

    def everything_tiled(
        self,
        image: Any,
        *,
        tile: int = 1024,
        overlap: int | None = None,
        resolution: int | SizeHW | None = None,
        **options: Unpack[EverythingKeywords],
    ) -> Iterator[dict[str, Any]]:
        """Finds all masks of an image that does not fit in memory, tile by tile.

        Masks of one object in neighbouring tiles are joined. An object is found best if it fits in the overlap.

        Args:
            image: As in ``image``; also a TIFF that is read in parts (``pip install masklet[tiff]``), or a memory map.
            tile: Side of a tile, in pixels.
            overlap: Least overlap of neighbouring tiles, in pixels; an eighth of ``tile`` if None.
            resolution: As in ``image``; of each tile.
            options: As in ``everything``; of each tile.

        Returns:
            An iterator of COCO instances (plain dicts with run lengths, as ``Masks.to_coco`` makes them), in the order
            of tiles. Write each as it comes, or read all with ``Masks.from_coco(..., packed=True)``.

        Raises:
            ImageError: It is not an image, or has more pixels than COCO's tools can count.
            ConfigError: ``tile``, ``overlap`` or an option is invalid.
        """
        chosen = EverythingOptions.for_model(self.engine.config, options, "tile", "overlap", "resolution")
        return everything_tiled(self.engine, self._processor(resolution), image, chosen, tile=tile, overlap=overlap)

    def video(
        self,
        video: Any,
        *,
        resolution: int | SizeHW | None = None,
        policy: str | MemoryPolicy = "paper",
        max_prompted: int | None = MAX_PROMPTED,
        max_objects: int = MAX_OBJECTS,
    ) -> VideoSession:
        """Opens a video, in which objects are prompted and tracked.

        Args:
            video: A video file, a folder of images in natural order, or any iterable of images.
            resolution: As in ``image``.
            policy: Which frames' memories a frame reads: ``"paper"``, or a ``masklet.video.policy.MemoryPolicy``.
            max_prompted: With ``policy="paper"``, the prompted frames that a frame reads at most, the nearest ones; all
                of them if None.
            max_objects: Objects in one batch; any number may be tracked. Objects do not depend on each other, to the
                bit on a CPU, and on other devices with 1; in larger batches there, to the order of sums.

        Raises:
            VideoError: It is not a video.
            CheckpointError: The model has no memory.
            PromptError: ``max_prompted`` or ``max_objects`` is less than 1.
            ConfigError: There is no such policy.
        """
        opened = open_video(video)
        chosen = make_policy(
            policy, num_maskmem=self.engine.config.num_maskmem, max_prompted=max_prompted, length=opened.count
        )
        return VideoSession(self.engine, self._processor(resolution), opened, chosen, max_objects=max_objects)

    def resume(self, path: str | os.PathLike[str], video: Any = None) -> VideoSession:
        """Continues a session that ``VideoSession.save`` or ``VideoSession.track(autosave=...)`` saved.

        Args:
            path: The saved session.
            video: As in ``video``, if the video has moved or was not a file.

        Raises:
            SessionError: It is not a saved session, is damaged, or was saved by another version, with another model or
                for another video; or its video is gone.
            VideoError: ``video`` is not a video.
        """
        return VideoSession.resume(self.engine, self.image_processor, path, video)

    def stream(
        self,
        *,
        resolution: int | SizeHW | None = None,
        policy: str | MemoryPolicy = "paper",
        max_prompted: int = MAX_PROMPTED,
        max_objects: int = MAX_OBJECTS,
        fps: float = 30.0,
    ) -> VideoStream:
        """Tracks objects through frames that arrive one at a time, without end.

        Args:
            resolution: As in ``image``.
            policy: As in ``video``.
            max_prompted: As in ``video``, but not None.
            max_objects: As in ``video``.
            fps: Frames per second, for the time of each result.

        Raises:
            CheckpointError: The model has no memory.
            PromptError: ``max_prompted`` or ``max_objects`` is less than 1; ``fps`` is not positive.
            ConfigError: There is no such policy.
        """
        chosen = make_policy(policy, num_maskmem=self.engine.config.num_maskmem, max_prompted=max_prompted)
        return VideoStream(self.engine, self._processor(resolution), chosen, max_objects=max_objects, fps=fps)

    def _processor(self, resolution: int | SizeHW | None) -> Sam2ImageProcessor:
        return _resized(self.image_processor, resolution)

    def load_image(self, path: str | os.PathLike[str]) -> EncodedImage:
        """Loads an encoded image that ``EncodedImage.save`` wrote, without encoding it again.

        Raises:
            CheckpointError: The file is missing, damaged, of another kind, or was written with another encoder.
        """
        return EncodedImage.load(self.engine, path)


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
        dtype: Of weights and computation: ``"float32"``, ``"bfloat16"``, ``"float16"`` or a floating-point
            ``torch.dtype``; ``"auto"`` is float32.
        engine: How the network runs: ``"eager"`` on any device, ``"cpu"`` with float32 weights on a CPU, faster there;
            ``"auto"`` is the faster one that can run the model.
        resolution: Side of the square input, a multiple of 32, instead of the one the model was saved with. Meta's
            ``.pt`` files do not hold it and are run at 1,024 pixels: give it for those that were fine-tuned at another
            size. ``model.save_pretrained`` stores it.
        revision: Branch, tag or commit of a Hub repository.
        token: For a private Hub repository.

    Raises:
        CheckpointError: The model cannot be found, is damaged, or is of another kind.
        ConfigError: ``dtype``, ``engine`` or ``resolution`` is invalid, or the engine cannot run the model.
        DeviceError: The device is not there.
    """
    name = checkpoints.EMBEDDED if name is None else name
    place, precision = find_device(device), find_dtype(dtype)
    check_engine(engine)
    check_resolution(resolution)
    model = Sam2Model.from_pretrained(name, resolution=resolution, revision=revision, token=token)
    processor = Sam2ImageProcessor.from_pretrained(name, revision=revision, token=token)
    return Segmenter(make_engine(model.to(place, precision), engine), _resized(processor, resolution))


def check_resolution(side: int | None) -> None:
    """Raises a ConfigError unless this can be a model's own input size."""
    if side is not None and (not isinstance(side, int) or side < 1 or side % SIDE_MULTIPLE):
        raise ConfigError(
            f"resolution is {side!r}: expected the side of a square, a multiple of {SIDE_MULTIPLE} pixels. "
            "For other shapes give resolution=(height, width) with each image"
        )


def find_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating-point dtype, by its name or as it is.

    Raises:
        ConfigError: It is another name or another kind of dtype.
    """
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    raise ConfigError(f"dtype is {dtype!r}: expected {', '.join(DTYPES)}, or a floating-point torch.dtype")


def _resized(processor: Sam2ImageProcessor, resolution: int | SizeHW | None) -> Sam2ImageProcessor:
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
