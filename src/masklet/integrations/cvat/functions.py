"""The functions of CVAT's automatic annotation (``cvat_sdk.auto_annotation``)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import cvat_sdk.auto_annotation as cvataa
import numpy as np
from cvat_sdk import models
from PIL import Image

import masklet
from masklet import EncodedImage, Segmenter, VideoStream
from masklet.errors import ConfigError
from masklet.everything.options import EverythingOptions
from masklet.integrations.cvat.shapes import SHAPE_TYPES, check_shape_type, mask_shape, mask_shapes, shape_prompt

OBJECT = 1
"""The id of the only object of a stream."""


class Function:
    """What the functions share: a model, loaded at the first image.

    The program that registers a function with CVAT only reads its ``spec``, and so loads no model.
    """

    def __init__(self, model: str | None = None, device: str = "auto") -> None:
        """Chooses a model.

        Args:
            model: See ``masklet.load``; the embedded model if None.
            device: See ``masklet.load``.
        """
        self.model = model
        self.device = device

    @cached_property
    def segmenter(self) -> Segmenter:
        """The model."""
        return masklet.load(self.model, self.device)


class Detection(Function):
    """Finds all objects of an image."""

    def __init__(
        self,
        model: str | None = None,
        device: str = "auto",
        *,
        label: str = "object",
        shape: str = "mask",
        tolerance: float = 0.0,
        **options: Any,
    ) -> None:
        """Chooses a model, and what is found.

        Args:
            model: See ``masklet.load``.
            device: See ``masklet.load``.
            label: The label of the task that all objects get: the network knows no classes.
            shape: "mask", "polygon" or "rectangle".
            tolerance: How far, in pixels, polygons may be from the exact outline.
            options: As in ``Segmenter.everything``, such as ``points_per_side=16`` or ``min_area=100``.

        Raises:
            PromptError: There is no such shape.
            ConfigError: An option is unknown or invalid.
        """
        super().__init__(model, device)
        self.shape = check_shape_type(shape)
        self.tolerance = tolerance
        self.options = options
        unknown = options.keys() - EverythingOptions.__dataclass_fields__.keys()
        if unknown:
            raise ConfigError(f"no option {', '.join(sorted(unknown))}: expected options of Segmenter.everything")
        self.spec = cvataa.DetectionFunctionSpec(labels=[cvataa.label_spec(label, 0, type=self.shape)])

    def detect(
        self, context: cvataa.DetectionFunctionContext, image: Image.Image
    ) -> Sequence[models.LabeledShapeRequest]:
        """The objects of an image, those of one mask in a group of their own."""
        masks = self.segmenter.everything(image, packed=True, **self.options)
        kind = "polygon" if self.shape == "mask" and context.conv_mask_to_poly else self.shape
        least = context.conf_threshold or 0.0
        shapes = []
        for number, mask in enumerate(masks[masks.iou_scores >= least], 1):
            parts = mask_shapes(np.asarray(mask.masks)[0], kind, tolerance=self.tolerance)
            group = {"group": number} if len(parts) > 1 else {}
            shapes += [cvataa.shape(0, type=kind, points=points, **group) for points in parts]
        return shapes


class Interaction(Function):
    """Segments what is clicked, or is in a box."""

    spec = cvataa.InteractionFunctionSpec(min_pos_points=0, min_neg_points=0, min_bounding_boxes=0)

    def __init__(self, model: str | None = None, device: str = "auto", *, shape: str = "mask") -> None:
        """Chooses a model.

        Args:
            model: See ``masklet.load``.
            device: See ``masklet.load``.
            shape: "mask", "polygon" or "rectangle". CVAT 2.80 ignores all but masks.

        Raises:
            PromptError: There is no such shape.
        """
        super().__init__(model, device)
        self.shape = check_shape_type(shape)

    def preprocess_image(self, context: cvataa.InteractionFunctionContext, image: Image.Image) -> EncodedImage:
        """Encodes an image once for all clicks."""
        return self.segmenter.image(image)

    def detect(
        self, context: cvataa.InteractionFunctionContext, pp_image: EncodedImage, prompts: cvataa.InteractionPrompts
    ) -> list[cvataa.InteractionResultShape]:
        """The object that the prompts are for; nothing for an empty mask.

        Raises:
            PromptError: There is no prompt, or one is outside the image.
        """
        points = [(*xy, 1) for xy in prompts.pos_points] + [(*xy, 0) for xy in prompts.neg_points]
        box = prompts.bounding_box
        masks = pp_image.predict(points or None, box=None if box is None else (*box[0], *box[1]))
        confidence = models.AttributeValRequest(
            spec_id=cvataa.InteractionResultAttributes.CONFIDENCE, value=f"{float(masks.iou_scores[0]):.4f}"
        )
        return [
            cvataa.InteractionResultShape(type=self.shape, points=numbers, attributes=[confidence])
            for numbers in mask_shapes(masks.masks[0], self.shape)
        ]


class Tracking(Function):
    """Tracks shapes from frame to frame. Each gets a memory of its own; the shapes of a frame share its encoding."""

    spec = cvataa.TrackingFunctionSpec(supported_shape_types=set(SHAPE_TYPES))

    def __init__(self, model: str | None = None, device: str = "auto", *, tolerance: float = 0.0) -> None:
        """Chooses a model.

        Args:
            model: See ``masklet.load``.
            device: See ``masklet.load``.
            tolerance: How far, in pixels, polygons may be from the exact outline.
        """
        super().__init__(model, device)
        self.tolerance = tolerance

    def preprocess_image(self, context: cvataa.TrackingFunctionContext, image: Image.Image) -> EncodedImage:
        """Encodes a frame once for all shapes."""
        return self.segmenter.stream().encode(image)

    def init_tracking_state(
        self, context: cvataa.TrackingFunctionShapeContext, pp_image: EncodedImage, shape: cvataa.TrackableShape
    ) -> VideoStream:
        """A stream whose first frame is prompted with the shape.

        Raises:
            PromptError: The shape is invalid or outside the frame.
        """
        stream = self.segmenter.stream()
        stream.push(pp_image, {OBJECT: shape_prompt(shape.type, shape.points, pp_image.size_hw)})
        return stream

    def track(
        self, context: cvataa.TrackingFunctionShapeContext, pp_image: EncodedImage, state: VideoStream
    ) -> cvataa.TrackableShape | None:
        """The shape in the next frame, or None where the object is out of sight."""
        kind = check_shape_type(context.original_shape_type)
        result = state.push(pp_image)
        numbers = mask_shape(result[OBJECT].masks[0], kind, tolerance=self.tolerance) if result.visible[0] else None
        return None if numbers is None else cvataa.TrackableShape(type=kind, points=numbers)
