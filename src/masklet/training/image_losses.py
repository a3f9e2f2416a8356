"""Objects are shown in an image, then corrected click by click.

Source: SAM (arXiv 2304.02643), appendix A, "training algorithm".
"""

from __future__ import annotations

import torch
from torch import Tensor

from masklet.model.neck import Features
from masklet.model.prompt_encoder import Prompts
from masklet.model.sam2 import Sam2Model
from masklet.training.losses import Losses, LossWeights, mask_iou, segmentation_losses
from masklet.training.prompts import PromptRates, boxes_as_clicks, correction_click, coverage, first_prompt
from masklet.video.tracker import CERTAIN_LOGIT


def interactive_losses(
    model: Sam2Model,
    features: Features,
    targets: Tensor,
    *,
    rounds: int,
    weights: LossWeights,
    prompts: PromptRates,
    generator: torch.Generator,
) -> tuple[list[Losses], list[Tensor]]:
    """Prompt every object, then correct it: the losses, and the mean IoU of what is shown each round.

    Args:
        model: The network.
        features: Of the images.
        targets: (batch, objects, height, width) bool, each fills a cell of the network's masks.
        rounds: The first prompt, then a correction each.
        weights: Of the losses.
        prompts: How objects are shown first. The decoder takes masks for all objects or none, so a batch is one or the
            other; as in ``EncodedImage.predict`` a mask comes with its box.
        generator: Draws the prompts.
    """
    cover = coverage(targets)
    cells = cover >= 0.5
    if prompts.is_mask(generator):
        clicks = boxes_as_clicks(targets)
        previous = torch.where(cells, CERTAIN_LOGIT, -CERTAIN_LOGIT)
    else:
        clicks, previous = first_prompt(targets, generator, boxes=prompts.box_among_points), None
    losses, ious = [], []
    for index in range(rounds):
        out = model.decode(features, Prompts(clicks.points, clicks.labels, masks=previous), multimask=None)
        logits, predicted, scores = out.logits.float(), out.iou_scores.float(), out.object_scores.float()
        # The single mask answers every prompt, the candidates only a lone click: what people get is what is taught.
        is_one_click = clicks.is_one_click
        single, candidates = slice(0, 1), slice(1, None)
        for masks, counts in ((single, None), (candidates, is_one_click)) if index == 0 else ((single, None),):
            losses.append(
                segmentation_losses(
                    logits[:, :, masks], predicted[:, :, masks], scores, cover, weights=weights, counts=counts
                )
            )
        best = torch.where(is_one_click, 1 + predicted[:, :, candidates].argmax(-1), 0)[..., None, None, None]
        shown = logits.detach().gather(2, best.expand(-1, -1, 1, *logits.shape[-2:])).squeeze(2)
        ious.append(mask_iou(shown > 0, cells).mean())
        if index + 1 < rounds:
            previous = shown
            clicks = clicks.and_then(correction_click(shown > 0, cells, generator))
    return losses, ious
