"""Tracking through clips: objects are prompted in the first frame, tracked through the others, and corrected.

The steps are those of inference, on all objects of all clips as one batch: a *row* is one object of one clip. Rows are
prompted in groups by the kind of prompt. Nothing is read back from the device.

Source: SAM 2 (arXiv 2408.00714), section 4, "training", and appendix D.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.engine import Engine
from masklet.engine.base import ABSENT_LOGIT, stored_maps
from masklet.model.mask_decoder import DecodedMasks
from masklet.model.memory_attention import Memory
from masklet.model.neck import Features
from masklet.model.prompt_encoder import Prompts
from masklet.model.sam2 import Sam2Model
from masklet.training.clip_plan import CLICK, MASK, ClipPlan
from masklet.training.losses import Losses, LossWeights, mask_iou, object_losses
from masklet.training.prompts import (
    BOTTOM_RIGHT,
    FOREGROUND,
    MASK_STRIDE,
    TOP_LEFT,
    correction_click,
    coverage,
    covered_cells,
)
from masklet.video.policy import PaperPolicy
from masklet.video.tracker import CERTAIN_LOGIT, PREVIOUS_LIMIT

FIRST, LATER = 0, 1
"""The two occasions of corrections: in the first frame, and in a later one."""


def clip_losses(
    engine: Engine, features: Features, targets: Tensor, *, rounds: int, weights: LossWeights, plan: ClipPlan
) -> tuple[Losses, list[Tensor]]:
    """Prompts every object in the first frame of its clip, then tracks it.

    Args:
        engine: Engine of a model with memory. Gradients flow through it.
        features: Features of all frames, clip by clip: (clips * frames, ...).
        targets: (clips, frames, objects, height, width) bool; in the first frame each mask covers a cell of the
            network's mask grid.
        rounds: The first frame is corrected ``rounds - 1`` times, and so is the plan's corrected frame.
        weights: Weights of the losses.
        plan: What the user does, from ``draw_plan``.

    Returns:
        The losses: means over the decodings of each clip (a mask prompt is not decoded), then over clips. And two mean
        IoUs of the objects: in the first frame, and in the other frames where they are visible.
    """
    tracking = _Tracking(engine, features, targets, rounds, weights, plan)
    first = tracking.prompt_first_frame()
    ious = [mask_iou(first.logits.detach() > 0, tracking.truth(0) >= 0.5)]
    for frame in range(1, targets.shape[1]):
        tracked = tracking.track(frame)
        ious.append(mask_iou(tracked.logits.detach() > 0, tracking.truth(frame) >= 0.5))
    is_visible = covered_cells(targets[:, 1:]).flatten(3).any(-1)
    return tracking.losses(), [ious[0].mean(), torch.stack(ious[1:]).sum() / is_visible.sum().clamp(min=1)]


@dataclass
class _Frames:
    """The frames of a clip that are done, as a policy sees them."""

    prompted: set[int]
    done: set[int]

    def __contains__(self, frame: object) -> bool:
        return frame in self.done


@dataclass(frozen=True)
class _Results:
    """The masks of rows in one frame, and what their memory is made of."""

    logits: Tensor  # (rows, 4h, 4w), those of absent objects are ABSENT_LOGIT
    object_scores: Tensor  # (rows, 1)
    pointers: Tensor  # (rows, dim)

    def where(self, chosen: Tensor, other: _Results) -> _Results:
        """These results in the ``chosen`` rows, and ``other`` in the rest."""
        each = chosen[:, None]
        return _Results(
            torch.where(each[..., None], self.logits, other.logits),
            torch.where(each, self.object_scores, other.object_scores),
            torch.where(each, self.pointers, other.pointers),
        )


@dataclass(frozen=True)
class _Points:
    """As many points for each row, in pixels of the network's input; corners of boxes first."""

    points: Tensor  # (rows, points, 2)
    labels: Tensor  # (rows, points)

    def extended(self, other: _Points) -> _Points:
        """These points, then ``other``."""
        return _Points(torch.cat([self.points, other.points], 1), torch.cat([self.labels, other.labels], 1))


@dataclass(frozen=True)
class _Rows:
    """Some rows of a frame: their maps, truth and random numbers."""

    index: Tensor | None  # (rows,); None for all rows
    features: Features  # of each row, or a batch of 1 that all share
    truth: Tensor  # (rows, h, w), the share of each cell that is covered
    draws: Tensor  # (rows, rounds, 3)


class _Tracking:
    """The state of all rows.

    What is stored in memory uses the true presence of an object (see ``with_true_presence``), while corrections react
    to what the network predicts.
    """

    def __init__(
        self, engine: Engine, features: Features, targets: Tensor, rounds: int, weights: LossWeights, plan: ClipPlan
    ) -> None:
        self.engine, self.rounds, self.weights, self.plan = engine, rounds, weights, plan
        self.targets = targets
        self.clips, self.frames, self.objects = targets.shape[:3]
        self.by_clip = Features(*(maps.unflatten(0, (self.clips, self.frames)) for maps in features))
        self.cover = coverage(targets)  # (clips, frames, objects, h, w)
        self.draws = plan.draws.to(targets.device).flatten(0, 1)  # (rows, occasions, rounds, 3)
        self.clip_of_row = torch.arange(self.clips, device=targets.device).repeat_interleave(self.objects)
        self.policy = PaperPolicy(num_maskmem=engine.config.num_maskmem)
        self.maps: list[Tensor] = []  # of each frame: (rows, tokens, memory_dim)
        self.pointers: list[Tensor] = []  # of each frame: (rows, dim)
        self.prompted = {plan.numbers[0]}
        self.decodings: list[Tensor] = []  # (rows, 7) each: clip, losses, and what they count

    def truth(self, frame: int) -> Tensor:
        """(rows, h, w)."""
        return self.cover[:, frame].flatten(0, 1)

    def rows(self, frame: int, occasion: int, chosen: list[int] | None = None) -> _Rows:
        """All rows in a frame, or the chosen ones."""
        maps = Features(*(m[:, frame] for m in self.by_clip))
        truth, draws = self.truth(frame), self.draws[:, occasion]
        if chosen is None:
            if self.clips > 1:
                maps = Features(*(m.repeat_interleave(self.objects, 0) for m in maps))
            return _Rows(None, maps, truth, draws)
        index = torch.tensor(chosen, device=truth.device)
        if self.clips > 1:
            maps = Features(*(m[self.clip_of_row[index]] for m in maps))
        return _Rows(index, maps, truth[index], draws[index])

    def prompt_first_frame(self) -> _Results:
        """Prompts each group of rows and stores their masks: as given, or as decoded and corrected."""
        found, order = [], []
        for kind, chosen in self.plan.groups():
            rows = self.rows(0, FIRST, chosen)
            found.append(self._take_masks(rows) if kind == MASK else self._prompt(rows, kind))
            order += chosen
        place = torch.tensor(sorted(range(len(order)), key=order.__getitem__), device=self.targets.device)
        columns = zip(*((one.logits, one.object_scores, one.pointers) for one in found), strict=True)
        results = _Results(*(torch.cat(column)[place] for column in columns))
        self._store(self.rows(0, FIRST).features, results, is_prompted=True)
        return results

    def track(self, frame: int) -> _Results:
        """Tracks all rows into a frame, corrects them if the plan says so, and stores them. Returns what it tracked."""
        rows, number = self.rows(frame, LATER), self.plan.numbers[frame]
        conditioned = self.engine.read_memory(rows.features, self._memory(frame, rows.features.stride16))
        decoded = self.engine.decode(rows.features, multimask=True, conditioned=conditioned)
        self._count(decoded, rows)
        tracked = _chosen(with_true_presence(self.engine.model, decoded, rows.truth))
        is_corrected = frame == self.plan.corrected
        stored = tracked
        if is_corrected:
            stored = self._correct(rows, _chosen(decoded).logits, tracked, conditioned, None)
            self.prompted.add(number)
        self._store(rows.features, stored, is_prompted=is_corrected)
        return tracked

    def losses(self) -> Losses:
        """The means over the decodings of each clip, then over clips."""
        columns = torch.cat(self.decodings)
        sums = columns.new_zeros(self.clips, 6).index_add(0, columns[:, 0].long(), columns[:, 1:])
        masks, scores = sums[:, 4:5].clamp(min=1), sums[:, 5:].clamp(min=1)
        focal, dice, iou, score = (sums[:, :4] / torch.cat([masks.expand(-1, 3), scores], 1)).mean(0)
        return Losses(self.weights, focal, dice, iou, score)

    def _prompt(self, rows: _Rows, kind: str) -> _Results:
        """Prompts rows by their clicks or boxes, then corrects them."""
        assert rows.index is not None
        points = (
            (self.plan.clicks if kind == CLICK else self.plan.boxes).to(rows.truth.device).flatten(0, 1)[rows.index]
        )
        labels = torch.tensor([FOREGROUND] if kind == CLICK else [TOP_LEFT, BOTTOM_RIGHT], device=points.device)
        prompts = _Points(points, labels.expand(len(points), -1))
        image = self.engine.model.without_memory(rows.features.stride16).expand(len(points), -1, -1, -1)
        decoded = self._decode(rows, prompts, image, None)
        self._count(decoded, rows)
        result = _chosen(with_true_presence(self.engine.model, decoded, rows.truth))
        return self._correct(rows, _chosen(decoded).logits, result, image, prompts)

    def _correct(
        self,
        rows: _Rows,
        predicted: Tensor,
        result: _Results,
        image: Tensor,
        prompts: _Points | None,
    ) -> _Results:
        """Corrects predictions by a click for each remaining round.

        An object that is absent and predicted to be so is left as it is: it is decoded with the others, but counts for
        nothing.

        Args:
            rows: Rows to correct.
            predicted: (rows, 4h, 4w), the predicted logits.
            result: What is stored of rows that are not corrected.
            image: (rows, dim, h, w), the frame's map, after memory attention if it is not the first frame.
            prompts: Those so far in this frame.
        """
        cells = rows.truth >= 0.5
        is_active = torch.ones(len(cells), dtype=torch.bool, device=cells.device)
        for index in range(self.rounds - 1):
            is_active = is_active & ((predicted > 0) | cells).flatten(1).any(1)
            click = correction_click(predicted[:, None] > 0, cells[:, None], rows.draws[:, None, index])
            clicked = _Points(click.points[:, 0], click.labels[:, 0])
            prompts = clicked if prompts is None else prompts.extended(clicked)
            decoded = self._decode(rows, prompts, image, predicted.detach())
            self._count(decoded, rows, is_active)
            predicted = torch.where(is_active[:, None, None], _chosen(decoded).logits, predicted)
            result = _chosen(with_true_presence(self.engine.model, decoded, rows.truth)).where(is_active, result)
        return result

    def _decode(self, rows: _Rows, prompts: _Points, image: Tensor, previous: Tensor | None) -> DecodedMasks:
        """Decodes points with labels, (rows, points, ...). A single point has three candidates."""
        masks = None if previous is None else previous.clamp(-PREVIOUS_LIMIT, PREVIOUS_LIMIT)[:, None]
        return self.engine.decode(
            rows.features,
            Prompts(prompts.points[:, None], prompts.labels[:, None], masks=masks),
            multimask=prompts.points.shape[1] <= 1,
            conditioned=image,
        )

    def _take_masks(self, rows: _Rows) -> _Results:
        """The masks of prompts are the results. The network only makes pointers of them."""
        assert rows.index is not None
        masks = self.targets[:, 0].flatten(0, 1)[rows.index]
        inside = masks.to(self.engine.dtype)[:, None]  # (rows, 1, height, width)
        # Without the embedding that says "no memory", as the reference does it.
        image = rows.features.stride16.expand(len(masks), -1, -1, -1)
        prompts = Prompts(masks=self.engine.downsample_mask(inside))
        decoded = self.engine.decode(rows.features, prompts, multimask=False, conditioned=image)
        assert decoded.object_pointers is not None
        scores = torch.full_like(decoded.object_scores[:, 0], CERTAIN_LOGIT)
        return _Results(_mask_logits(masks, self.engine), scores, decoded.object_pointers[:, 0, 0])

    def _memory(self, frame: int, like: Tensor) -> Memory:
        """What all rows read in a frame. They were prompted in the same frames, so they read the same ones."""
        numbers = self.plan.numbers
        selection = self.policy.select(numbers[frame], _Frames(self.prompted, set(numbers[:frame])), step=1)
        maps = [self.maps[numbers.index(number)] for number, _ in selection.maps]
        pointers = [self.pointers[numbers.index(number)] for number, _ in selection.pointers]
        longest = max(selection.max_pointers - 1, 1)
        slots = torch.tensor([slot for _, slot in selection.maps], device=like.device)
        steps = torch.tensor(
            [distance / longest for _, distance in selection.pointers], dtype=torch.float32, device=like.device
        )
        rows = self.clips * self.objects
        return Memory(
            # One by one, since autocast cannot stack bfloat16 while it computes in float16.
            maps=torch.stack([one.to(like.dtype) for one in maps], 1),
            map_slots=slots.expand(rows, -1),
            pointers=torch.stack(pointers, 1),
            pointer_distances=steps.expand(rows, -1),
        )

    def _store(self, features: Features, results: _Results, *, is_prompted: bool) -> None:
        memory = self.engine.write_memory(features, results.logits, results.object_scores, binarize=is_prompted)
        # In the type in which inference stores it, since the rounding is part of the results.
        self.maps.append(stored_maps(memory, self.engine.config))
        self.pointers.append(results.pointers)

    def _count(self, decoded: DecodedMasks, rows: _Rows, is_counted: Tensor | None = None) -> None:
        """Records the losses of a decoding; all rows count if ``is_counted`` is None."""
        logits, ious, scores = decoded.logits.float(), decoded.iou_scores.float(), decoded.object_scores.float()
        each = object_losses(logits, ious, scores, rows.truth[:, None], weights=self.weights)
        counts = torch.ones_like(each.focal) if is_counted is None else is_counted[:, None].to(each.focal.dtype)
        masks = counts * each.is_present
        clip = self.clip_of_row if rows.index is None else self.clip_of_row[rows.index]
        columns = (each.focal * masks, each.dice * masks, each.iou * masks, each.object_score * counts, masks, counts)
        self.decodings.append(torch.cat([clip[:, None].to(masks.dtype), *columns], 1))


def with_true_presence(model: Sam2Model, decoded: DecodedMasks, truth: Tensor) -> DecodedMasks:
    """Replaces the predicted object scores by the truth.

    The tracker stores an object that it takes for absent as an empty mask and a constant pointer. While the scores are
    still wrong, that would cut memory off from the masks it has to learn from.
    """
    is_present = (truth >= 0.5).flatten(1).any(-1)[:, None, None]  # (objects, 1, 1)
    scores = torch.where(is_present, CERTAIN_LOGIT, -CERTAIN_LOGIT).to(decoded.object_scores.dtype)
    return replace(decoded, object_scores=scores, object_pointers=model.object_pointers(decoded.mask_tokens, scores))


def _chosen(decoded: DecodedMasks) -> _Results:
    """The candidate of the best predicted IoU for each row of (rows, 1, candidates, ...)."""
    assert decoded.object_pointers is not None
    best = decoded.iou_scores[:, 0].argmax(-1)  # (rows,)
    each = torch.arange(len(best), device=best.device)
    scores = decoded.object_scores[:, 0]  # (rows, 1)
    logits = torch.where(scores[..., None] > 0, decoded.logits[each, 0, best], ABSENT_LOGIT)
    return _Results(logits, scores, decoded.object_pointers[each, 0, best])


def _mask_logits(masks: Tensor, engine: Engine) -> Tensor:
    """(rows, height, width) bool to (rows, 4h, 4w): the logits of masks that are prompts."""
    certain = CERTAIN_LOGIT * (2 * masks[:, None].float() - 1)
    size_hw = [side // MASK_STRIDE for side in masks.shape[-2:]]
    on_cpu = certain.cpu() if certain.device.type == "mps" else certain  # which has no antialiasing
    logits = F.interpolate(on_cpu, size=size_hw, mode="bilinear", antialias=True)[:, 0]
    return logits.to(engine.device, engine.dtype)
