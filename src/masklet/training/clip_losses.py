"""Tracking through a clip: objects are prompted in the first frame, tracked through the others, and corrected.

The steps are those of inference. Source: SAM 2 (arXiv 2408.00714), section 4, "training", and appendix D.
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
from masklet.training.prompts import PADDING, PromptRates, correction_click, coverage, covered_cells, first_prompt
from masklet.video.memory import ObjectMemory
from masklet.video.object_frame import ObjectFrame
from masklet.video.policy import PaperPolicy
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
"""Largest difference between the numbers of consecutive frames."""


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
    """Prompts every object in the first frame of a clip, then tracks it.

    Args:
        engine: Of a model with memory. Gradients flow through it.
        features: Features of each frame.
        targets: (frames, objects, height, width) bool; in the first frame each mask covers a cell of the network's
            mask grid.
        rounds: The first frame is corrected ``rounds - 1`` times; in half of the clips, so is one other frame.
        weights: Weights of the losses.
        prompts: Rates of first prompts.
        generator: Source of randomness for prompts, corrections and the time between frames.

    Returns:
        The losses of each decoding (a mask prompt is not decoded); and two mean IoUs of the objects: in the first
        frame, and in the other frames where they are visible.
    """
    policy = PaperPolicy(num_maskmem=engine.config.num_maskmem)
    banks = [ObjectMemory(spool=None) for _ in range(targets.shape[1])]
    numbers = _frame_numbers(len(targets), generator)
    corrected = _corrected_frame(len(targets), rounds, generator)
    user = _SimulatedUser(engine, rounds, weights, generator)
    cover = coverage(targets)  # (frames, objects, h, w)

    prompted = [
        user.prompt(bank, numbers[0], features[0], prompt, truth)
        for bank, prompt, truth in zip(banks, _first_prompts(targets[0], prompts, generator), cover[0], strict=True)
    ]
    ious = [_ious(prompted, cover[0])]
    for frame in range(1, len(targets)):
        number, maps, truth = numbers[frame], features[frame], cover[frame]
        selections = [policy(number, bank.prompted, bank.tracked, step=1) for bank in banks]
        decoded = decode_with_memory(engine, maps, banks, selections)
        user.add_losses(decoded, truth)
        tracked = choose(with_true_presence(engine.model, decoded, truth))
        ious.append(_ious(tracked, truth))
        if frame == corrected:
            for index, (bank, selection) in enumerate(zip(banks, selections, strict=True)):
                conditioned = read_memory(engine, maps, [bank], [selection])
                (predicted,) = choose(_one_object(decoded, index))
                user.correct(bank, number, maps, predicted, truth[index], conditioned)
        for bank, result, memory in zip(
            banks, tracked, memory_maps(engine, maps, tracked, is_prompted=False), strict=True
        ):
            if number not in bank:  # it was not corrected
                bank.put(number, result, memory, is_prompted=False)
    tracked_ious, is_visible = torch.stack(ious[1:]), covered_cells(targets[1:]).flatten(2).any(-1)
    return user.losses, [ious[0].mean(), tracked_ious.sum() / is_visible.sum().clamp(min=1)]


class _SimulatedUser:
    """Prompts objects and corrects their masks, and records the losses of every decoding.

    What is stored in memory uses the true presence of an object (see ``with_true_presence``), while corrections react
    to what the network predicts.
    """

    def __init__(self, engine: Engine, rounds: int, weights: LossWeights, generator: torch.Generator) -> None:
        self.engine = engine
        self.rounds = rounds
        self.weights = weights
        self.generator = generator
        self.losses: list[Losses] = []

    def add_losses(self, decoded: DecodedMasks, truth: Tensor) -> None:
        """Records the losses against ``truth``, (objects, h, w), the share of each cell that is covered."""
        logits, ious, scores = decoded.logits.float(), decoded.iou_scores.float(), decoded.object_scores.float()
        self.losses.append(segmentation_losses(logits, ious, scores, truth[:, None], weights=self.weights))

    def prompt(
        self, bank: ObjectMemory, number: int, maps: Features, prompt: FramePrompt, truth: Tensor
    ) -> ObjectFrame:
        """Prompts an object for the first time and stores its mask: as given, or as decoded and corrected."""
        if prompt.mask is not None:
            result, memory = track_object(self.engine, maps, prompt)
            bank.put(number, result, memory, is_prompted=True)
            return result
        decoded = decode_prompt(self.engine, maps, prompt, None, None)
        self.add_losses(decoded, truth[None])
        (result,) = choose(with_true_presence(self.engine.model, decoded, truth[None]))
        (predicted,) = choose(decoded)
        if (corrected := self.correct(bank, number, maps, predicted, truth, None, prompt)) is not None:
            return corrected
        self.store(bank, number, maps, result)
        return result

    def correct(
        self,
        bank: ObjectMemory,
        number: int,
        maps: Features,
        predicted: ObjectFrame,
        truth: Tensor,
        conditioned: Tensor | None,
        prompt: FramePrompt | None = None,
    ) -> ObjectFrame | None:
        """Corrects the prediction of one object by a click for each remaining round.

        Args:
            bank: Memory of the object, which receives the corrected mask.
            number: Number of the frame.
            maps: Features of the frame.
            predicted: The prediction to correct.
            truth: (h, w), the share of each cell that is covered.
            conditioned: The frame's map after memory attention; None in the first frame.
            prompt: The prompts so far.

        Returns:
            The corrected result; None if nothing was corrected, because there is only one round or because the object
            is absent and predicted to be so.
        """
        result = None
        for _ in range(self.rounds - 1):
            cells = truth >= 0.5
            if not (predicted.logits > 0).any() and not cells.any():
                break
            click = correction_click(predicted.logits[None, None] > 0, cells[None, None], self.generator)
            clicked = FramePrompt(click.points[0, 0], click.labels[0, 0])
            prompt = clicked if prompt is None else clicked.after(prompt)
            decoded = decode_prompt(self.engine, maps, prompt, conditioned, predicted.logits.detach())
            self.add_losses(decoded, truth[None])
            (predicted,) = choose(decoded)
            (result,) = choose(with_true_presence(self.engine.model, decoded, truth[None]))
        if result is not None:
            self.store(bank, number, maps, result)
        return result

    def store(self, bank: ObjectMemory, number: int, maps: Features, result: ObjectFrame) -> None:
        """Stores a result in memory as that of a prompted frame."""
        (memory,) = memory_maps(self.engine, maps, [result], is_prompted=True)
        bank.put(number, result, memory, is_prompted=True)


def _frame_numbers(frames: int, generator: torch.Generator) -> list[int]:
    """Rising from 0, with gaps in half of the clips.

    Without gaps, a short clip would never use the temporal encodings of older memories.
    """
    gaps = torch.randint(1, MAX_GAP + 1, (frames - 1,), generator=generator)
    if float(torch.rand((), generator=generator)) < 0.5:
        gaps = torch.ones_like(gaps)
    return [0, *gaps.cumsum(0).tolist()]


def _corrected_frame(frames: int, rounds: int, generator: torch.Generator) -> int | None:
    """The frame after the first that is corrected, if any."""
    frame = int(torch.randint(1, frames, (), generator=generator))
    return frame if rounds > 1 and float(torch.rand((), generator=generator)) < 0.5 else None


def _first_prompts(targets: Tensor, rates: PromptRates, generator: torch.Generator) -> list[FramePrompt]:
    """One prompt for each object of (objects, height, width)."""
    clicks = first_prompt(targets[None], generator, box_share=rates.box_share)
    prompts = []
    for target, points, labels in zip(targets, clicks.points[0], clicks.labels[0], strict=True):
        if rates.draws_mask(generator):
            prompts.append(FramePrompt(mask=target))
        else:
            prompts.append(FramePrompt(points[labels != PADDING], labels[labels != PADDING]))
    return prompts


def with_true_presence(model: Sam2Model, decoded: DecodedMasks, truth: Tensor) -> DecodedMasks:
    """Replaces the predicted object scores by the truth.

    The tracker stores an object that it takes for absent as an empty mask and a constant pointer. While the scores are
    still wrong, that would cut memory off from the masks it has to learn from.
    """
    is_present = (truth >= 0.5).flatten(1).any(-1)[:, None, None]  # (objects, 1, 1)
    scores = torch.where(is_present, CERTAIN_LOGIT, -CERTAIN_LOGIT).to(decoded.object_scores.dtype)
    return replace(decoded, object_scores=scores, object_pointers=model.object_pointers(decoded.mask_tokens, scores))


def _one_object(decoded: DecodedMasks, index: int) -> DecodedMasks:
    one = slice(index, index + 1)
    return DecodedMasks(**{name: values[one] for name, values in vars(decoded).items()})


def _ious(results: list[ObjectFrame], truth: Tensor) -> Tensor:
    """(objects,)."""
    return mask_iou(torch.stack([result.logits.detach() for result in results]) > 0, truth >= 0.5)
