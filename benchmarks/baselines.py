"""Compare masklet with baselines without a network: GrabCut in the same box, and the first mask warped by optical flow.

    python benchmarks/baselines.py [--images FOLDER] [--videos FOLDER] [--model nano] [--json baselines.json]

The folders and scores are those of ``masklet eval``: GrabCut's IoU compares with ``box``; J, F and J&F of the flow
compare with those for the first mask as the prompt, and with the first mask held. Needs OpenCV (the extra ``bench``).

- GrabCut (Rother et al., SIGGRAPH 2004) runs ``--iterations`` times. Where the box covers the whole image there is no
  background to learn from, and the result is the box itself.
- DIS (Kroeger et al., arXiv 1603.03590), preset medium, computes the flow from each frame to the previous one. The mask
  is warped from frame to frame with soft borders, and thresholded at 0.5 for scoring. This was the best of three
  variants on seven DAVIS videos: thresholding on every frame lost 0.005 of J&F, and composing the flows to warp the
  first mask once lost 0.016.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from common import device_name, report
from numpy.typing import NDArray
from rich.progress import track
from rich.table import Table

import masklet
from masklet.evaluation.agreement import boundary_f, region_j
from masklet.evaluation.clicks import box_of
from masklet.evaluation.folder import Example, read_folder
from masklet.evaluation.measure import measure
from masklet.evaluation.scores import summarise
from masklet.evaluation.video import AnnotatedVideo, evaluate_videos, first_appearances, read_videos
from masklet.images.reading import read_image


@dataclass(frozen=True)
class GrabCutScore:
    """IoU of GrabCut's mask for an object's box."""

    image: str
    object: int
    grabcut: float


@dataclass(frozen=True)
class FlowScore:
    """An object's first mask, warped by optical flow: means over frames."""

    video: str
    object: int
    flow_j_and_f: float
    flow_j: float
    flow_f: float


def grabcut(image: NDArray[np.uint8], box: tuple[int, int, int, int], iterations: int) -> NDArray[np.bool_]:
    """(height, width): GrabCut's mask of the object in a box."""
    x0, y0, x1, y1 = box
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[y0:y1, x0:x1] = cv2.GC_PR_FGD
    if mask.all():
        return mask > 0
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    bgr = np.ascontiguousarray(image[..., ::-1])
    cv2.grabCut(bgr, mask, (x0, y0, x1 - x0, y1 - y0), *models, iterations, cv2.GC_INIT_WITH_RECT)
    return (mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)


def grabcut_scores(examples: Iterable[Example], iterations: int) -> Iterator[GrabCutScore]:
    for example in examples:
        for number in example.objects:
            truth = example.labels == number
            iou = region_j(grabcut(example.image, box_of(truth), iterations), truth)
            yield GrabCutScore(example.name, number, iou)


def backward_maps(video: AnnotatedVideo) -> list[NDArray[np.float32]]:
    """For each frame but the first, (height, width, 2): the positions (x, y) of its pixels in the previous frame."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    greys = [cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY) for path in video.images]
    y, x = np.mgrid[: greys[0].shape[0], : greys[0].shape[1]]
    pixels_xy = np.stack([x, y], -1).astype(np.float32)
    return [pixels_xy + dis.calc(after, before, None) for before, after in pairwise(greys)]


def flow_scores(video: AnnotatedVideo) -> Iterator[FlowScore]:
    maps = backward_maps(video)
    for number, tracked in first_appearances(video, maps[0].shape[:2]).items():
        mask, scores = tracked.first_mask.astype(np.float32), []
        for frame in range(tracked.first_frame + 1, len(video.images) - 1):
            mask = cv2.remap(mask, maps[frame - 1], None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            warped, truth = mask > 0.5, video.labels(frame) == number
            scores.append((region_j(warped, truth), boundary_f(warped, truth)))
        j, f = np.mean(scores, axis=0).tolist()
        yield FlowScore(video.name, number, (j + f) / 2, j, f)


def joined(ours: Iterable[Any], theirs: Iterable[Any]) -> dict[str, Any]:
    """The scores of two methods for the same objects, and the means of both."""
    ours, theirs = list(ours), list(theirs)
    return {
        "summary": summarise(ours) | summarise(theirs),
        "objects": [asdict(one) | asdict(other) for one, other in zip(ours, theirs, strict=True)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--videos", type=Path)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not (args.images or args.videos):
        parser.error("nothing to compare: give --images, --videos or both")

    sam = masklet.load(args.model)
    results = {}
    if args.images:
        images = read_folder(args.images)
        results["images"] = joined(
            measure(sam, track(images, "masklet, images")),
            grabcut_scores(track(images, "GrabCut"), args.iterations),
        )
    if args.videos:
        videos = read_videos(args.videos)
        results["videos"] = joined(
            evaluate_videos(sam, track(videos, "masklet, videos")),
            (score for video in track(videos, "DIS flow") for score in flow_scores(video)),
        )
    setting = {
        "model": args.model,
        "resolution": sam.image_processor.input_hw,
        "device": device_name(sam.model.device.type),
        "masklet": masklet.__version__,
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "grabcut_iterations": args.iterations,
    }
    table = Table("", "measure", "mean")
    for name, result in results.items():
        for measured, value in result["summary"].items():
            table.add_row(name, measured, f"{value:.3f}" if isinstance(value, float) else str(value))
        table.add_section()
    report(table, setting, results, args.json)


if __name__ == "__main__":
    main()
