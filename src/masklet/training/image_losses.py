"""Interactive segmentation of an image: a first prompt for every object, then one correction click at a time.

Source: SAM (arXiv 2304.02643), appendix A, "training algorithm".
"""

from __future__ import annotations

import torch
from torch import Tensor

from masklet.model.neck import Features
from masklet.model.prompt_encoder import Prompts
from masklet.model.sam2 import Sam2Model
from masklet.training.losses import Losses, LossWeights, mask_iou, segmentation_losses
from masklet.training.prompts import PromptRates, box_prompts, correction_click, coverage, first_prompt, uniform
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
    """Prompts every object, then corrects its mask.

    Args:
        model: The network.
        features: Features of the images, from ``Sam2Model.encode``.
        targets: (batch, objects, height, width) bool; each mask covers a cell of the network's mask grid.
        rounds: Number of decodings: the first prompt, then corrections.
        weights: Weights of the losses.
        prompts: Rates of first prompts. The decoder takes masks for all objects or for none, so a batch is prompted
            either by masks or by clicks and boxes. As in ``EncodedImage.predict``, a mask is given with its box.
        generator: Source of randomness for the prompts.

    Returns:
        The losses of each decoding, and the mean IoU of the selected masks after each round.
    """
    cover = coverage(targets)
    cells = cover >= 0.5
    if prompts.draws_mask(generator):
        clicks = box_prompts(targets)
        previous = torch.where(cells, CERTAIN_LOGIT, -CERTAIN_LOGIT)
    else:
        clicks, previous = first_prompt(targets, generator, box_share=prompts.box_share), None
    losses, ious = [], []
    for index in range(rounds):
        out = model.decode(features, Prompts(clicks.points, clicks.labels, masks=previous), multimask=None)
        logits, predicted, scores = out.logits.float(), out.iou_scores.float(), out.object_scores.float()
        # As in inference, the single mask answers every prompt and the candidates answer a single click.
        is_single_click = clicks.is_single_click
        single, candidates = slice(0, 1), slice(1, None)
        for masks, supervised in ((single, None), (candidates, is_single_click)) if index == 0 else ((single, None),):
            losses.append(
                segmentation_losses(
                    logits[:, :, masks], predicted[:, :, masks], scores, cover, weights=weights, supervised=supervised
                )
            )
        best = torch.where(is_single_click, 1 + predicted[:, :, candidates].argmax(-1), 0)[..., None, None, None]
        selected = logits.detach().gather(2, best.expand(-1, -1, 1, *logits.shape[-2:])).squeeze(2)
        ious.append(mask_iou(selected > 0, cells).mean())
        if index + 1 < rounds:
            previous = selected
            clicks = clicks.extended(correction_click(selected > 0, cells, uniform((*cells.shape[:2], 3), generator)))
    return losses, ious
