"""The video processor of transformers' interface: sessions, prompts, and masks of the video's size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from masklet import checkpoints
from masklet.checkpoints import HubOptions
from masklet.compat.transformers.processing import Sam2Processor
from masklet.compat.transformers.video_prompts import read_masks, read_points
from masklet.compat.transformers.video_session import Sam2VideoInferenceSession
from masklet.compat.transformers.video_video_processing import Sam2VideoVideoProcessor, pixel_palette
from masklet.errors import PromptError
from masklet.model.prompt_encoder import PADDING
from masklet.numbers import whole_number
from masklet.video.frame_result import check_object_id


class Sam2VideoProcessor(Sam2Processor):
    """Prepares videos, frames and prompts for ``Sam2VideoModel``.

    Args:
        image_processor: Prepares the frames of a stream.
        video_processor: Prepares the frames of a video.
        target_size: Side of the network's input, in pixels; that of the image processor if None.
        point_pad_value: Coordinate and label of padded points.
        kwargs: As in ``Sam2Processor``.
    """

    attributes = ("image_processor", "video_processor")
    files = (*Sam2Processor.files, checkpoints.VIDEO_PREPROCESSOR)

    def __init__(
        self,
        image_processor: Any,
        video_processor: Any,
        target_size: int | None = None,
        point_pad_value: int = PADDING,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_processor, target_size, point_pad_value, **kwargs)
        self.video_processor = video_processor

    # Saving and loading

    def to_dict(self) -> dict[str, Any]:
        """The content of ``processor_config.json``."""
        return super().to_dict() | {"video_processor": self.video_processor.to_dict()}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """The processor of a model; arguments as in ``Sam2ImageProcessor.from_pretrained``, and the constructor's.

        Settings apply to images and to videos.
        """
        hub = HubOptions.taken_from(kwargs)
        arguments = {name: kwargs.pop(name) for name in ("target_size", "point_pad_value") if name in kwargs}
        own = checkpoints.read_processor(pretrained_model_name_or_path, hub)[1]
        stored = {name: own[name] for name in ("target_size", "point_pad_value") if own.get(name) is not None}
        name, options = pretrained_model_name_or_path, asdict(hub) | kwargs
        images = cls.image_processor_class.from_pretrained(name, **options)
        return cls(images, Sam2VideoVideoProcessor.from_pretrained(name, **options), **(stored | arguments))

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes the settings for images and for videos: see ``Sam2Processor.save_pretrained``."""
        self.video_processor.save_pretrained(save_directory)
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    # Sessions

    def init_video_session(
        self,
        video: Any = None,
        inference_device: torch.device | str = "cpu",
        inference_state_device: torch.device | str | None = None,
        processing_device: torch.device | str | None = None,
        video_storage_device: torch.device | str | None = None,
        max_vision_features_cache_size: int = 1,
        dtype: torch.dtype | str = torch.float32,
    ) -> Sam2VideoInferenceSession:
        """A session for one video, or for a stream.

        Frames are read and prepared when they are needed, so that a video of any length takes little memory.

        Args:
            video: A path, or images as ``Sam2VideoVideoProcessor`` takes them; None for a stream.
            inference_device: Device of the model.
            inference_state_device: Device of cached features and of outputs that are read from the session; None for
                that of the model, as for the next two.
            processing_device: Where frames are resized, if they are tensors on another device.
            video_storage_device: Device of the prepared frames.
            max_vision_features_cache_size: How many frames' features are kept.
            dtype: Dtype of the prepared frames.

        Raises:
            ValueError: It is not a video, or more than one.
        """
        session = Sam2VideoInferenceSession(
            inference_device=inference_device,
            inference_state_device=inference_state_device or inference_device,
            video_storage_device=video_storage_device or inference_device,
            dtype=dtype,
            max_vision_features_cache_size=max_vision_features_cache_size,
        )
        session.palette = pixel_palette(self.image_processor)
        if video is not None:
            frames, (height, width) = self.video_processor.frames_of(
                video,
                processing_device=processing_device or inference_device,
                device=session.video_storage_device,
                dtype=session.dtype,
            )
            session.processed_frames, session.video_height, session.video_width = frames, height, width
        return session

    def add_inputs_to_inference_session(
        self,
        inference_session: Sam2VideoInferenceSession,
        frame_idx: int,
        obj_ids: Any,
        input_points: Any = None,
        input_labels: Any = None,
        input_boxes: Any = None,
        input_masks: Any = None,
        original_size: Any = None,
        clear_old_inputs: bool = True,
    ) -> None:
        """Prompts objects in a frame. The model runs the prompts when it comes to the frame.

        Args:
            inference_session: The session.
            frame_idx: The frame's number.
            obj_ids: The id of an object, or a list of ids; new ones add objects.
            input_points: ``[1][object][point]`` (x, y) in pixels of the video.
            input_labels: ``[1][object][point]``: 1 on the object, 0 beside it.
            input_boxes: ``[1][object]`` (x0, y0, x1, y1).
            input_masks: One mask, or a list of one for each object: see ``process_new_mask_for_video_frame``.
            original_size: (height, width) of the frames of a stream, with its first prompt.
            clear_old_inputs: Whether earlier points of the objects in this frame are forgotten. A mask replaces points,
                and points replace a mask, in any case.

        Raises:
            ValueError: The prompt is incomplete or contradicts itself, or there is no ``original_size``.
        """
        frame_idx = whole_number("frame_idx", frame_idx, PromptError)
        obj_ids = obj_ids.tolist() if hasattr(obj_ids, "tolist") else obj_ids
        ids = list(obj_ids) if isinstance(obj_ids, list | tuple) else [obj_ids]
        for object_id in ids:
            check_object_id(object_id)
        is_pointed = input_points is not None or input_labels is not None or input_boxes is not None
        if input_masks is not None and is_pointed:
            raise PromptError("masks cannot be provided together with points or boxes")
        if input_masks is None and not is_pointed:
            raise PromptError("at least one of points, boxes, or masks must be provided as input")
        if input_masks is not None:
            self.process_new_mask_for_video_frame(inference_session, frame_idx, ids, input_masks)
            return
        self.process_new_points_or_boxes_for_video_frame(
            inference_session, frame_idx, ids, input_points, input_labels, input_boxes, original_size, clear_old_inputs
        )

    def process_new_points_or_boxes_for_video_frame(
        self,
        inference_session: Sam2VideoInferenceSession,
        frame_idx: int,
        obj_ids: Sequence[Any],
        input_points: Any = None,
        input_labels: Any = None,
        input_boxes: Any = None,
        original_size: Any = None,
        clear_old_inputs: bool = True,
    ) -> None:
        """Prompts objects with points, boxes, or both: see ``add_inputs_to_inference_session``."""
        session = inference_session
        if input_boxes is not None and not clear_old_inputs:
            raise PromptError("a box came with clear_old_inputs=False: a box must be the first prompt of its frame")
        height, width = _video_size(session, original_size)
        prompts = read_points(
            input_points,
            input_labels,
            input_boxes,
            obj_ids,
            size_hw=(height, width),
            target_hw=self.target_hw,
            padding=self.point_pad_value,
        )
        session.video_height, session.video_width = height, width
        for object_id, prompt in zip(obj_ids, prompts, strict=True):
            obj_idx = session.obj_id_to_idx(object_id)
            earlier = None if clear_old_inputs else session.point_inputs_per_obj[obj_idx].get(frame_idx)
            if earlier is not None:
                prompt = {
                    "point_coords": torch.cat([earlier["point_coords"].to("cpu"), prompt["point_coords"]], dim=2),
                    "point_labels": torch.cat([earlier["point_labels"].to("cpu"), prompt["point_labels"]], dim=2),
                }
            session.add_point_inputs(obj_idx, frame_idx, prompt)
            session.remove_mask_inputs(obj_idx, frame_idx)
        session.obj_with_new_inputs = [*dict.fromkeys([*session.obj_with_new_inputs, *obj_ids])]

    def process_new_mask_for_video_frame(
        self, inference_session: Sam2VideoInferenceSession, frame_idx: int, obj_ids: Sequence[Any], input_masks: Any
    ) -> None:
        """Prompts objects with masks, which replace earlier points. An empty mask says that the object is not there.

        Args:
            inference_session: The session.
            frame_idx: The frame's number.
            obj_ids: The ids of the objects.
            input_masks: One mask, or one for each object: (height, width) of any size, with up to two axes of 1 before.
                A mask is resized to the network's input with antialias; pixels that it covers by half or more count.

        Raises:
            ValueError: There is another number of masks, or one has another shape.
        """
        session = inference_session
        for object_id, mask in zip(obj_ids, read_masks(input_masks, obj_ids, self.target_hw), strict=True):
            obj_idx = session.obj_id_to_idx(object_id)
            session.add_mask_inputs(obj_idx, frame_idx, mask)
            session.remove_point_inputs(obj_idx, frame_idx)
        session.obj_with_new_inputs = [*dict.fromkeys([*session.obj_with_new_inputs, *obj_ids])]


def _video_size(session: Sam2VideoInferenceSession, given: Any) -> tuple[int, int]:
    """(height, width) of the frames.

    Raises:
        PromptError: It is not known.
    """
    if given is not None:
        values = given.tolist() if hasattr(given, "tolist") else list(given)
        if len(values) != 2 or not all(isinstance(value, int | float) for value in values):
            raise PromptError(f"original_size is {values}: expected (height, width), as in inputs.original_sizes[0]")
        return int(values[0]), int(values[1])
    if session.video_height is None or session.video_width is None:
        raise PromptError(
            "original_size must be provided when adding points or boxes on a first streamed frame: expected "
            "original_size=inputs.original_sizes[0]"
        )
    return int(session.video_height), int(session.video_width)
