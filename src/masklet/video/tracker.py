"""One step of tracking: (frame, memory, prompt) -> (result, memory map). Stateless; sessions and training share it.

Source: SAM 2 (arXiv 2408.00714), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.config import STRIDES
from masklet.engine import Engine
from masklet.engine.base import TrackedObjects, stored_maps
from masklet.model.mask_decoder import DecodedMasks
from masklet.model.memory_attention import Memory
from masklet.model.neck import Features
from masklet.model.prompt_encoder import Prompts
from masklet.video.frame_prompts import joined_clicks
from masklet.video.memory import ReadableMemory, gather_memory
from masklet.video.memory_slots import MemorySlots
from masklet.video.object_frame import ObjectFrame
from masklet.video.policy import MemorySelection

CERTAIN_LOGIT = 10.0
"""Logits of a mask that is a prompt."""
PREVIOUS_LIMIT = 32.0
"""Earlier logits are clamped to this before they are corrected."""


@dataclass(frozen=True)
class FramePrompt:
    """A prompt for one object in one frame, in pixels of the network's input: points and box, a mask, or all of them.

    A mask alone is taken as it is. With points or a box it is what they refine.
    """

    points: Tensor | None = None  # (points, 2), box corners first
    labels: Tensor | None = None  # (points,)
    mask: Tensor | None = None  # (height, width) bool, of the network's input

    def after(self, earlier: FramePrompt) -> FramePrompt:
        """Both prompts together: points add up, a new box replaces an earlier one, a new mask replaces everything."""
        if self.mask is not None or earlier.points is None or self.points is None:
            return self
        assert earlier.labels is not None
        assert self.labels is not None
        kept = torch.from_numpy(joined_clicks(earlier.labels.cpu().numpy(), self.labels.cpu().numpy()))
        kept = kept.to(self.points.device)
        return FramePrompt(
            torch.cat([earlier.points, self.points])[kept], torch.cat([earlier.labels, self.labels])[kept]
        )


def track_objects(
    engine: Engine,
    features: Features,
    banks: Sequence[ReadableMemory],
    selections: Sequence[MemorySelection],
    *,
    fixed_shapes: bool = False,
    slots: MemorySlots | None = None,
) -> list[tuple[ObjectFrame, Tensor]]:
    """Track objects into a frame, in one batch.

    Args:
        engine: Engine of a model with memory.
        features: Features of the frame, see ``Engine.encode``; shared by all of its objects.
        banks: The memory of each object. It is not changed.
        selections: What to read of each; all of one shape, see ``MemorySelection.shape``.
        fixed_shapes: Pad memories to a fixed shape, which suits accelerators.
        slots: Where memories are kept from frame to frame, which suits them better.

    Returns:
        The result of each object, and its memory map, (h*w, memory_dim).
    """
    memory = readable_memory(engine, features, banks, selections, fixed_shapes=fixed_shapes, slots=slots)
    if engine.batches_memory:
        tracked, maps = engine.track(features, memory)
        return list(zip(_each_object(tracked), maps.unbind(), strict=True))
    decoded = engine.decode(features, multimask=True, conditioned=engine.read_memory(features, memory))
    results = choose(decoded)
    # One by one: a map that is computed again later is computed alone, and has to be the same to the bit.
    return [(result, memory_maps(engine, features, [result], is_prompted=False)[0]) for result in results]


def track_object(
    engine: Engine,
    features: Features,
    prompt: FramePrompt,
    conditioned: Tensor | None = None,
    previous: Tensor | None = None,
) -> tuple[ObjectFrame, Tensor]:
    """Segment one object in a frame in which it is prompted.

    Args:
        engine: Engine of a model with memory.
        features: Features of the frame.
        prompt: Prompt for this frame.
        conditioned: (1, dim, h, w), from ``read_memory``; None on a frame that tracking has not reached.
        previous: (4h, 4w) logits to correct, if the frame had a result before. The mask of the prompt replaces them.

    Returns:
        As ``track_objects``, for this object.
    """
    if prompt.mask is not None and prompt.points is None:
        (result,) = _take_masks(engine, features, [prompt.mask])
    else:
        previous = previous if prompt.mask is None else mask_logits(engine, prompt.mask)
        (result,) = choose(decode_prompt(engine, features, prompt, conditioned, previous))
    (memory,) = memory_maps(engine, features, [result], is_prompted=True)
    return result, memory


def prompt_objects(
    engine: Engine, features: Features, prompts: Sequence[FramePrompt]
) -> list[tuple[ObjectFrame, Tensor]]:
    """Segment new objects in the frame in which they are prompted, in one batch.

    Args:
        engine: Engine of a model with memory.
        features: Features of the frame.
        prompts: One for each object: each a mask alone, or each as many points, such as a box.

    Returns:
        As ``track_objects``.
    """
    if all(prompt.points is None for prompt in prompts):
        results = _take_masks(engine, features, [prompt.mask for prompt in prompts if prompt.mask is not None])
    else:
        points = torch.stack([prompt.points for prompt in prompts if prompt.points is not None])
        labels = torch.stack([prompt.labels for prompt in prompts if prompt.labels is not None])
        decoded = engine.decode(features, Prompts(points[None], labels[None]), multimask=labels.shape[1] <= 1)
        results = choose(_one_per_row(decoded))
    # One by one where an engine asks for it, see ``track_objects``.
    batches = [results] if engine.batches_memory else [[result] for result in results]
    maps = [one for batch in batches for one in memory_maps(engine, features, batch, is_prompted=True)]
    return list(zip(results, maps, strict=True))


def _one_per_row(decoded: DecodedMasks) -> DecodedMasks:
    """Outputs (1, objects, ...) of one frame as (objects, 1, ...)."""
    assert decoded.object_pointers is not None
    return DecodedMasks(
        decoded.logits.transpose(0, 1),
        decoded.iou_scores.transpose(0, 1),
        decoded.object_scores.transpose(0, 1),
        decoded.mask_tokens.transpose(0, 1),
        decoded.object_pointers.transpose(0, 1),
    )


def decode_prompt(
    engine: Engine,
    features: Features,
    prompt: FramePrompt,
    conditioned: Tensor | None,
    previous: Tensor | None,
) -> DecodedMasks:
    """Decode points or a box, (1, 1, ...): see ``track_object``. A single point has three candidates."""
    assert prompt.points is not None
    assert prompt.labels is not None
    return engine.decode(
        features,
        Prompts(
            prompt.points[None, None],
            prompt.labels[None, None],
            masks=None if previous is None else previous.clamp(-PREVIOUS_LIMIT, PREVIOUS_LIMIT)[None, None],
        ),
        multimask=len(prompt.labels) <= 1,
        conditioned=conditioned,
    )


def decode_with_memory(
    engine: Engine,
    features: Features,
    banks: Sequence[ReadableMemory],
    selections: Sequence[MemorySelection],
    *,
    fixed_shapes: bool = False,
    slots: MemorySlots | None = None,
) -> DecodedMasks:
    """Decode objects that are not prompted in this frame: (objects, 1, ...), three candidates."""
    memory = readable_memory(engine, features, banks, selections, fixed_shapes=fixed_shapes, slots=slots)
    return engine.decode(features, multimask=True, conditioned=engine.read_memory(features, memory))


def choose(decoded: DecodedMasks) -> list[ObjectFrame]:
    """The candidate of the best predicted IoU for each object of (objects, 1, candidates, ...)."""
    # Cloned, since views would keep the tensors of the whole batch alive.
    return [
        ObjectFrame(one.logits.clone(), one.iou_score.clone(), one.object_score.clone(), one.pointer.clone())
        for one in _each_object(TrackedObjects.best_of(decoded))
    ]


def _each_object(tracked: TrackedObjects) -> list[ObjectFrame]:
    return [ObjectFrame(*row) for row in zip(*(column.unbind() for column in tracked), strict=True)]


def memory_maps(
    engine: Engine, features: Features, results: Sequence[ObjectFrame], *, is_prompted: bool
) -> list[Tensor]:
    """The memory map of each result, (h*w, memory_dim): a function of the frame and the results alone."""
    logits = torch.stack([result.logits for result in results])
    scores = torch.stack([result.object_score for result in results])
    maps = stored_maps(engine.write_memory(features, logits, scores[:, None], binarize=is_prompted), engine.config)
    # Cloned, since views would keep the maps of the whole batch alive.
    return list(maps.unbind()) if len(maps) == 1 or engine.batches_memory else [one.clone() for one in maps]


def readable_memory(
    engine: Engine,
    features: Features,
    banks: Sequence[ReadableMemory],
    selections: Sequence[MemorySelection],
    *,
    fixed_shapes: bool = False,
    slots: MemorySlots | None = None,
) -> Memory:
    """What a frame reads of each object."""
    has_weights = any(selection.key_weights is not None for selection in selections)
    if slots is not None and not has_weights:
        return slots.read(engine, features, banks, selections)
    return gather_memory(engine, features, banks, selections, fixed_shapes=fixed_shapes)


def _take_masks(engine: Engine, features: Features, masks: Sequence[Tensor]) -> list[ObjectFrame]:
    """The masks of prompts are the results. The network only makes pointers of them."""
    inside = torch.stack([mask.to(engine.dtype) for mask in masks])[:, None]  # (objects, 1, height, width)
    # Without the embedding that says "no memory", as the reference does it.
    prompts = Prompts(masks=engine.downsample_mask(inside).transpose(0, 1))
    decoded = engine.decode(features, prompts, multimask=False, conditioned=features.stride16)
    assert decoded.object_pointers is not None
    one = torch.ones((), device=engine.device, dtype=engine.dtype)
    pointers = decoded.object_pointers[0, :, 0].unbind()
    return [
        ObjectFrame(mask_logits(engine, mask), iou_score=one, object_score=CERTAIN_LOGIT * one, pointer=pointer.clone())
        for mask, pointer in zip(masks, pointers, strict=True)
    ]


def mask_logits(engine: Engine, mask: Tensor) -> Tensor:
    """(4h, 4w): the logits of a mask of the network's input, as a prompt has it."""
    certain = CERTAIN_LOGIT * (2 * mask.to(engine.dtype)[None, None] - 1)
    size_hw = tuple(side // STRIDES[0] for side in mask.shape)
    # On the CPU in float32, since some devices and precisions have no antialiasing.
    logits = F.interpolate(certain.float().cpu(), size=size_hw, mode="bilinear", antialias=True)[0, 0]
    return logits.to(engine.device, engine.dtype)
