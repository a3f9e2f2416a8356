"""Masklet beside what needs no network: GrabCut from the same box, and the first mask carried on by optical flow.

    python benchmarks/baselines.py [--images FOLDER] [--videos FOLDER] [--model nano] [--json baselines.json]

The folders and scores are those of ``masklet eval``: GrabCut's IoU compares with ``box``, and J, F and J&F of the flow
with those from the first mask, and with the first mask kept still. Needs OpenCV (the extra ``bench``).

- GrabCut (Rother et al., SIGGRAPH 2004) has ``--iterations`` rounds. Where the box leaves no background to learn from
  there is nothing that it could do, and the box itself is taken.
- DIS (Kroeger et al., arXiv 1603.03590), preset medium, finds from each frame the way to the one before it. The mask
  goes along it from frame to frame with its soft border, and is cut at one half where it is scored. That scored best of
  the three ways tried on seven DAVIS videos: cutting it in every frame lost 0.005 of J&F, and joining the ways to read
  the first mask once lost 0.016.
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
from masklet.evaluation.video import AnnotatedVideo, evaluate_videos, first_seen, read_videos
from masklet.images.reading import read_image


@dataclass(frozen=True)
class GrabCutScore:
    """IoU of what GrabCut makes of an object's box."""

    image: str
    object: int
    grabcut: float


@dataclass(frozen=True)
class FlowScore:
    """An object's first mask carried on by the flow: means over frames."""

    video: str
    object: int
    flow_j_and_f: float
    flow_j: float
    flow_f: float


def grabcut(image: NDArray[np.uint8], box: tuple[int, int, int, int], iterations: int) -> NDArray[np.bool_]:
    """(height, width): what GrabCut takes for the object in a box."""
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


def ways_back(video: AnnotatedVideo) -> list[NDArray[np.float32]]:
    """From each frame but the first, (height, width, 2): where its pixels were in the frame before, x then y."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    greys = [cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY) for path in video.images]
    y, x = np.mgrid[: greys[0].shape[0], : greys[0].shape[1]]
    here = np.stack([x, y], -1).astype(np.float32)
    return [here + dis.calc(after, before, None) for before, after in pairwise(greys)]


def flow_scores(video: AnnotatedVideo) -> Iterator[FlowScore]:
    ways = ways_back(video)
    for number, one in first_seen(video, ways[0].shape[:2]).items():
        mask, scores = one.first_mask.astype(np.float32), []
        for frame in range(one.first_frame + 1, len(video.images) - 1):
            mask = cv2.remap(mask, ways[frame - 1], None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            carried, truth = mask > 0.5, video.labels(frame) == number
            scores.append((region_j(carried, truth), boundary_f(carried, truth)))
        j, f = np.mean(scores, axis=0).tolist()
        yield FlowScore(video.name, number, (j + f) / 2, j, f)


def joined(ours: Iterable[Any], theirs: Iterable[Any]) -> dict[str, Any]:
    """Scores of the same objects side by side, and the means of both."""
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
