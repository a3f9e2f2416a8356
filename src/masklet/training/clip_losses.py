"""Objects are shown in a clip's first frame, followed through the others and corrected, by the very steps of inference.

Source: SAM 2 (arXiv 2408.00714), section 4, "training", and appendix D.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from masklet.engine import Engine
from masklet.model.mask_decoder import DecodedMasks
from masklet.model.neck import Features
from masklet.model.sam2 import Sam2Model
from masklet.training.losses import Losses, LossWeights, mask_iou, segmentation_losses
from masklet.training.prompts import PADDING, PromptRates, cells_of, correction_click, coverage, first_prompt
from masklet.video.memory import ObjectFrame, ObjectMemory, PaperPolicy
from masklet.video.tracker import (
    CERTAIN_LOGIT,
    FramePrompt,
    choose,
    decode_prompt,
    decode_with_memory,
    memory_maps,
    read_memory,
    track_object,
)

MAX_GAP = 3
"""A frame's number is at most this much above that of the one before."""


def clip_losses(
    engine: Engine,
    features: list[Features],
    targets: Tensor,
    *,
    rounds: int,
    weights: LossWeights,
    prompts: PromptRates,
    generator: torch.Generator,
) -> tuple[list[Losses], list[Tensor]]:
    """Prompt every object in the first frame of a clip, then follow it.

    Args:
        engine: Of a model with memory; gradients flow through it.
        features: Of each frame, see ``Sam2Model.encode``.
        targets: (frames, objects, height, width) bool; in the first frame each fills a cell of the network's masks.
        rounds: Above 1, so many corrections and one more in the first frame and, in half of the clips, in another.
        weights: Of the losses.
        prompts: How objects are shown first.
        generator: Decides how objects are shown, where they are corrected, and how far apart in time frames are said
            to be.

    Returns:
        The losses of each decoding, and the mean IoU of the objects in the first frame and, where visible, in the
        others. A mask that is given is not decoded.
    """
    policy = PaperPolicy(num_maskmem=engine.config.num_maskmem)
    banks = [ObjectMemory(spool=None) for _ in range(targets.shape[1])]
    numbers = _frame_numbers(len(targets), generator)
    corrected = _corrected_frame(len(targets), rounds, generator)
    teacher = _Teacher(engine, rounds, weights, generator)
    cover = coverage(targets)  # (frames, objects, h, w)

    shown = [
        teacher.show(bank, numbers[0], features[0], prompt, truth)
        for bank, prompt, truth in zip(banks, _prompts(targets[0], prompts, generator), cover[0], strict=True)
    ]
    ious = [_ious(shown, cover[0])]
    for frame in range(1, len(targets)):
        number, maps, truth = numbers[frame], features[frame], cover[frame]
        readings = [policy(number, bank.prompted, bank.tracked, step=1) for bank in banks]
        decoded = decode_with_memory(engine, maps, banks, readings)
        teacher.learn(decoded, truth)
        tracked = choose(told_who_is_there(engine.model, decoded, truth))
        ious.append(_ious(tracked, truth))
        if frame == corrected:
            for index, (bank, reading) in enumerate(zip(banks, readings, strict=True)):
                remembered = read_memory(engine, maps, [bank], [reading])
                (seen,) = choose(_one_object(decoded, index))
                teacher.correct(bank, number, maps, seen, truth[index], remembered)
        for bank, seen, memory in zip(
            banks, tracked, memory_maps(engine, maps, tracked, is_prompted=False), strict=True
        ):
            if number not in bank:  # nothing was to be corrected
                bank.put(number, seen, memory, is_prompted=False)
    followed, is_visible = torch.stack(ious[1:]), cells_of(targets[1:]).flatten(2).any(-1)
    return teacher.losses, [ious[0].mean(), followed.sum() / is_visible.sum().clamp(min=1)]


class _Teacher:
    """Shows objects and corrects them, and keeps the losses of all that the network says."""

    def __init__(self, engine: Engine, rounds: int, weights: LossWeights, generator: torch.Generator) -> None:
        self.engine = engine
        self.rounds = rounds
        self.weights = weights
        self.generator = generator
        self.losses: list[Losses] = []

    def learn(self, decoded: DecodedMasks, truth: Tensor) -> None:
        """Compare with the coverage, (objects, h, w)."""
        logits, ious, scores = decoded.logits.float(), decoded.iou_scores.float(), decoded.object_scores.float()
        self.losses.append(segmentation_losses(logits, ious, scores, truth[:, None], weights=self.weights))

    def show(self, bank: ObjectMemory, number: int, maps: Features, prompt: FramePrompt, truth: Tensor) -> ObjectFrame:
        """Show an object for the first time; its mask is remembered as it is given, or after corrections."""
        if prompt.mask is not None:
            seen, memory = track_object(self.engine, maps, prompt)
            bank.put(number, seen, memory, is_prompted=True)
            return seen
        decoded = decode_prompt(self.engine, maps, prompt, None, None)
        self.learn(decoded, truth[None])
        (seen,) = choose(told_who_is_there(self.engine.model, decoded, truth[None]))
        (said,) = choose(decoded)
        if (corrected := self.correct(bank, number, maps, said, truth, None, prompt)) is not None:
            return corrected
        self.remember(bank, number, maps, seen)
        return seen

    def correct(
        self,
        bank: ObjectMemory,
        number: int,
        maps: Features,
        said: ObjectFrame,
        truth: Tensor,
        remembered: Tensor | None,
        prompt: FramePrompt | None = None,
    ) -> ObjectFrame | None:
        """Click where what was said of an object is wrong, as often as there are rounds left; None if nothing is."""
        seen = None
        for _ in range(self.rounds - 1):
            cells = truth >= 0.5
            if not (said.logits > 0).any() and not cells.any():  # absent, and nothing is shown
                break
            click = correction_click(said.logits[None, None] > 0, cells[None, None], self.generator)
            clicked = FramePrompt(click.points[0, 0], click.labels[0, 0])
            prompt = clicked if prompt is None else clicked.after(prompt)
            decoded = decode_prompt(self.engine, maps, prompt, remembered, said.logits.detach())
            self.learn(decoded, truth[None])
            (said,) = choose(decoded)
            (seen,) = choose(told_who_is_there(self.engine.model, decoded, truth[None]))
        if seen is not None:
            self.remember(bank, number, maps, seen)
        return seen

    def remember(self, bank: ObjectMemory, number: int, maps: Features, seen: ObjectFrame) -> None:
        """Keep what was seen of an object as what a person showed."""
        (memory,) = memory_maps(self.engine, maps, [seen], is_prompted=True)
        bank.put(number, seen, memory, is_prompted=True)


def _frame_numbers(frames: int, generator: torch.Generator) -> list[int]:
    """Rising from 0, with gaps: a short clip would never reach what stands for the age of older memories."""
    gaps = torch.randint(1, MAX_GAP + 1, (frames - 1,), generator=generator)
    # Half of the clips are whole, as videos are.
    if float(torch.rand((), generator=generator)) < 0.5:
        gaps = torch.ones_like(gaps)
    return [0, *gaps.cumsum(0).tolist()]


def _corrected_frame(frames: int, rounds: int, generator: torch.Generator) -> int | None:
    """The second frame that a person corrects, if there is one."""
    frame = int(torch.randint(1, frames, (), generator=generator))
    return frame if rounds > 1 and float(torch.rand((), generator=generator)) < 0.5 else None


def _prompts(targets: Tensor, rates: PromptRates, generator: torch.Generator) -> list[FramePrompt]:
    """One for each object of (objects, height, width)."""
    clicks = first_prompt(targets[None], generator, boxes=rates.box_among_points)
    prompts = []
    for target, points, labels in zip(targets, clicks.points[0], clicks.labels[0], strict=True):
        if rates.is_mask(generator):
            prompts.append(FramePrompt(mask=target))
        else:
            prompts.append(FramePrompt(points[labels != PADDING], labels[labels != PADDING]))
    return prompts


def told_who_is_there(model: Sam2Model, decoded: DecodedMasks, truth: Tensor) -> DecodedMasks:
    """With the true presence in the place of the predicted one.

    What the tracker takes for absent it remembers as absent: a mask of nothing and a constant pointer. While the score
    is still wrong, that would cut the memory off from the mask it has to learn from.
    """
    is_present = (truth >= 0.5).flatten(1).any(-1)[:, None, None]  # (objects, 1, 1)
    scores = torch.where(is_present, CERTAIN_LOGIT, -CERTAIN_LOGIT).to(decoded.object_scores.dtype)
    return replace(decoded, object_scores=scores, object_pointers=model.object_pointers(decoded.mask_tokens, scores))


def _one_object(decoded: DecodedMasks, index: int) -> DecodedMasks:
    one = slice(index, index + 1)
    return DecodedMasks(**{name: values[one] for name, values in vars(decoded).items()})


def _ious(seen: list[ObjectFrame], truth: Tensor) -> Tensor:
    """(objects,)."""
    return mask_iou(torch.stack([one.logits.detach() for one in seen]) > 0, truth >= 0.5)
