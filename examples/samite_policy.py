"""A memory policy of one's own: SAMITE's prototype score (arXiv 2507.21732) for SAM 2, in sixty lines.

The prototype of an object is the mean of the image features inside its mask. Each candidate mask is scored by how
similar its prototype is to that of the last frame and to that of the first prompt:

    score = 0.3 · cos(candidate, last) + 0.7 · cos(candidate, first)

and the candidate of the best mean of this score and the predicted IoU is kept. What is read is left to another policy.

    python examples/samite_policy.py examples/videos/cups.mp4 --box 30,20,120,110 --out samite.mp4
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

import masklet
from masklet.video.policy import Candidates, Choice, History, MemorySelection, PaperPolicy


@dataclass(frozen=True, kw_only=True)
class SamitePolicy:
    """Chooses the candidate that looks like the object. Source: SAMITE, section 3, the prototypical memory bank."""

    last_weight: float = 0.3
    first_weight: float = 0.7
    memory: PaperPolicy = field(default_factory=PaperPolicy)

    hypotheses = 1

    def choose(self, frame: int, rows: Sequence[Candidates], *, step: int) -> list[Choice]:
        """Scores the candidates, and notes the prototype of the chosen one."""
        (found,) = rows
        own = prototypes(found)  # (candidates, dim)
        best = found.best
        before = frame - step
        known = () if found.is_prompted else (min(found.history.prompted, default=before), before)
        if known and all(other in found.history and noted(found.history, other) for other in known):
            first, last = (torch.tensor(noted(found.history, other)) for other in known)
            likeness = self.last_weight * F.cosine_similarity(own, last[None])
            likeness += self.first_weight * F.cosine_similarity(own, first[None])
            best = int((likeness + torch.tensor(found.iou_scores)).argmax())
        is_seen = found.object_score > 0 and found.areas[best]
        # An object that is out of sight keeps the look it had.
        kept = own[best].tolist() if is_seen else noted(found.history, before) if before in found.history else []
        return [Choice(best, notes={"prototype": kept})]

    def select(self, frame: int, history: History, *, step: int) -> MemorySelection:
        """What the policy of the paper reads."""
        return self.memory.select(frame, history, step=step)

    def keeps(self, frame: int, history: History, *, step: int) -> set[int]:
        """What the policy of the paper keeps."""
        return self.memory.keeps(frame, history, step=step) | {min(history.prompted, default=frame)}


def noted(history: History, frame: int) -> list[float]:
    """The prototype of a frame; empty if the object was never seen."""
    return history.record(frame).notes.get("prototype", [])


def prototypes(found: Candidates) -> Tensor:
    """(candidates, dim) mean features inside each mask."""
    features = found.features.stride16[0].float().cpu()
    inside = F.adaptive_avg_pool2d((found.logits > 0).float().cpu(), features.shape[-2:]).flatten(1)
    return inside @ features.flatten(1).T / inside.sum(1, keepdim=True).clamp(min=1e-6)


def main() -> None:
    """Tracks one object through a video, and writes it with the mask painted over it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("--box", required=True, help="x0,y0,x1,y1 around the object in frame 0")
    parser.add_argument("--out", default="samite.mp4")
    parser.add_argument("--model", default="nano")
    options = parser.parse_args()
    video = masklet.load(options.model).video(options.video, policy=SamitePolicy(memory=PaperPolicy(max_prompted=8)))
    video.prompt(0, box=[float(edge) for edge in options.box.split(",")])
    for _ in video.track():
        pass
    video.write(options.out)


if __name__ == "__main__":
    main()
