"""The processor of whole videos, which prepares each frame as an image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masklet import checkpoints
from masklet.compat.transformers.feature import BatchFeature, as_tensor
from masklet.compat.transformers.image_processing import Sam2ImageProcessor
from masklet.compat.transformers.images import is_numbers, to_channels_first
from masklet.compat.transformers.settings import read_size, take_hub_options
from masklet.compat.transformers.video_frames import VideoFrames
from masklet.config import SizeHW
from masklet.errors import ImageError, VideoError
from masklet.video.frames import Video, open_video, width_by_height
from masklet.video.readers import Frame

Frames = Video | Sequence[Any] | np.ndarray | Tensor
"""The frames of one video: a file's, or images."""


class Sam2VideoVideoProcessor(Sam2ImageProcessor):
    """Prepares the frames of videos. Arguments and settings are those of ``Sam2ImageProcessor``."""

    def __call__(self, videos: Any, **kwargs: Any) -> BatchFeature:  # type: ignore[override]
        """As ``preprocess``."""
        return self.preprocess(videos, **kwargs)

    def preprocess(self, videos: Any, **kwargs: Any) -> BatchFeature:  # type: ignore[override]
        """Prepares all frames of videos, which takes 12 MB of memory a frame: ``init_video_session`` takes less.

        Args:
            videos: A video or a list of videos, each a path, a list of images, an array or tensor (frames, height,
                width, 3) or (frames, 3, height, width).
            kwargs: Settings for this call, among them ``device`` and ``return_tensors``.

        Returns:
            ``original_sizes`` and ``reshaped_input_sizes`` (videos, 2) as (height, width), and ``pixel_values_videos``
            (videos, frames, 3, height, width); lists without ``return_tensors``.

        Raises:
            VideoError: Something is not a video.
        """
        settings = self._with(kwargs)
        read = [settings.frames_of(video, device=settings.device or "cpu") for video in split_videos(videos)]
        pixels = [torch.stack([frames[i] for i in frames]) for frames, _ in read]
        found = BatchFeature(
            {
                "original_sizes": [[*size_hw] for _, size_hw in read],
                "reshaped_input_sizes": [[*video.shape[-2:]] for video in pixels],
                "pixel_values_videos": pixels,
            }
        )
        return found.convert_to_tensors(settings.return_tensors)

    def frames_of(
        self,
        video: Any,
        *,
        device: torch.device | str,
        processing_device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[VideoFrames, SizeHW]:
        """The frames of one video, prepared when they are read, and their (height, width).

        Args:
            video: See ``preprocess``.
            device: Device of the prepared frames.
            processing_device: Where they are resized; None for where they are.
            dtype: Dtype of the prepared frames.

        Raises:
            VideoError: It is not a video, or more than one.
        """
        videos = split_videos(video)
        if len(videos) != 1:
            raise VideoError(f"{len(videos)} videos: expected one")
        first = videos[0][0]
        shape = self._read(first.image if isinstance(first, Frame) else first).shape
        size_hw = (shape[-2], shape[-1])
        prepare = partial(self._prepared, size_hw=size_hw, worker=processing_device, device=device, dtype=dtype)
        return VideoFrames(videos[0], prepare), size_hw

    def _read(self, image: Any) -> Tensor:
        return to_channels_first(image, self.input_data_format, to_rgb=self.do_convert_rgb)

    def _prepared(
        self, image: Any, *, size_hw: SizeHW, worker: Any, device: torch.device | str, dtype: torch.dtype
    ) -> Tensor:
        """(3, height, width) of the network's input."""
        pixels = self._read(image)
        if tuple(pixels.shape[-2:]) != size_hw:
            raise ImageError(
                f"a frame is {width_by_height(tuple(pixels.shape[-2:]))}, the first one {width_by_height(size_hw)}: "
                "expected one size throughout"
            )
        return self.pixel_values(pixels if worker is None else pixels.to(worker)).to(device, dtype)

    def post_process_masks(  # type: ignore[override]
        self,
        masks: Any,
        original_sizes: Any,
        reshaped_input_sizes: Any,
        mask_threshold: float = 0.0,
        binarize: bool = True,
        pad_size: Any = None,
    ) -> list[Tensor]:
        """Converts logits to masks of the videos' sizes, for inputs that frames filled in part.

        Args:
            masks: Logits of each video, (frames or objects, masks, h, w).
            original_sizes: (height, width) of each.
            reshaped_input_sizes: (height, width) of the part of the network's input that the frames filled.
            mask_threshold: Logit above which a pixel is inside.
            binarize: False returns logits.
            pad_size: Size of the network's input; ``size`` if None.

        Returns:
            For each video (frames or objects, masks, height, width).
        """
        input_hw = self.size.hw if pad_size is None else read_size("pad_size", pad_size).hw
        found = []
        for logits, original, reshaped in zip(masks, original_sizes, reshaped_input_sizes, strict=True):
            (height, width), size_hw = map(int, reshaped), tuple(map(int, original))
            upscaled = F.interpolate(as_tensor(logits), size=input_hw, mode="bilinear", align_corners=False)
            upscaled = F.interpolate(upscaled[..., :height, :width], size=size_hw, mode="bilinear", align_corners=False)
            found.append(upscaled > mask_threshold if binarize else upscaled)
        return found

    # Saving and loading

    def to_dict(self) -> dict[str, Any]:
        """The content of ``video_preprocessor_config.json``."""
        content = super().to_dict()
        for name in ("image_processor_type", "mask_size"):
            content.pop(name, None)
        return content | {"video_processor_type": "Sam2VideoVideoProcessor"}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """The video processor of a model: see ``Sam2ImageProcessor.from_pretrained``."""
        hub = take_hub_options(kwargs)
        return cls.from_dict(checkpoints.read_video_processor(pretrained_model_name_or_path, hub), **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes ``video_preprocessor_config.json``: see ``Sam2ImageProcessor.save_pretrained``."""
        checkpoints.write_text(Path(save_directory) / checkpoints.VIDEO_PREPROCESSOR, self.to_json_string())
        if push_to_hub:
            checkpoints.push_folder(save_directory, [checkpoints.VIDEO_PREPROCESSOR], **kwargs)


def pixel_palette(image_processor: Sam2ImageProcessor) -> Tensor:
    """(3, 256): what the processor makes of each 8-bit pixel, by channel."""
    steps = torch.arange(256, dtype=torch.uint8, device="cpu").expand(3, 1, -1)
    prepared: Tensor = image_processor(steps, do_resize=False, device="cpu", return_tensors="pt").pixel_values
    return prepared[0, :, 0]


def split_videos(videos: Any) -> list[Frames]:
    """One video or several as a list of videos.

    Raises:
        VideoError: It is not a video.
    """
    if isinstance(videos, str | os.PathLike):
        return [open_video(videos)]
    if isinstance(videos, np.ndarray | Tensor) and videos.ndim in (4, 5) and len(videos):
        return [videos] if videos.ndim == 4 else list(videos)
    if isinstance(videos, list | tuple) and videos:
        if all(_is_video(one) for one in videos):
            return [video for one in videos for video in split_videos(one)]
        if not any(_is_video(one) for one in videos):
            return [videos]
    raise VideoError(
        f"{type(videos).__name__} of shape {tuple(getattr(videos, 'shape', ()))} is not a video: expected a path, a "
        "list of images, or an array or tensor of four axes"
    )


def _is_video(value: Any) -> bool:
    """Whether an entry of a list is a video and not a frame."""
    if isinstance(value, list | tuple):
        return not is_numbers(value)
    return isinstance(value, str | os.PathLike) or getattr(value, "ndim", 3) == 4
