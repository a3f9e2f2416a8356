"""J&F and time of every memory policy, on annotated videos and on hard made ones.

    PYTHONPATH=. python benchmarks/policies.py [--data FOLDER] [--seeds 3] [--kind KIND …] [--model nano] [--every 1]
        [--json FILE] [--figure PNG]

All policies track the same frames beside each other, in turn, and share the encoding of each frame, so that changes in
the machine's speed affect all of them. The time is that of the processor for each frame and object, without encoding.
Objects are prompted by their masks in the first frame; those that appear later are left out. As in DAVIS, the first and
the last frame are not scored. For sam2long, J&F is also given for the best hypothesis at the moment, as in a stream.

The JSON file is written after every video, and a run with the same setting continues it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import device_name, report, save
from hard_videos import KINDS, hard_video
from PIL import Image, ImageDraw
from rich.table import Table

import masklet
from examples.samite_policy import SamitePolicy
from masklet.evaluation.agreement import boundary_f, region_j
from masklet.evaluation.folder import object_numbers
from masklet.evaluation.video import label_map, read_videos
from masklet.segmenter import Segmenter
from masklet.video.policies import POLICIES
from masklet.video.policy import PaperPolicy

SETS = ("annotated videos", *KINDS)
SHOWN_IN_FIGURE = "full occlusion 0"


class SharedEncoding:
    """Encodes each frame once for all sessions, and counts the time."""

    def __init__(self, sam: Segmenter) -> None:
        self._encode = sam.engine.encode
        self._last: tuple[bytes, Any] | None = None
        self.seconds = 0.0
        sam.engine.encode = self  # type: ignore[method-assign]

    def __call__(self, pixels: Any) -> Any:
        """The features of a frame."""
        start = time.process_time()
        key = pixels.numpy().tobytes()
        if self._last is None or self._last[0] != key:
            self._last = key, self._encode(pixels)
        self.seconds += time.process_time() - start
        return self._last[1]


def policies() -> dict[str, Any]:
    return {**{name: name for name in POLICIES}, "samite": SamitePolicy(memory=PaperPolicy(max_prompted=8))}


def measure(sam: Segmenter, shared: SharedEncoding, images: Any, labels: list[np.ndarray]) -> tuple[dict, dict, dict]:
    """J&F by policy, seconds by policy, and the masks of every frame by policy."""
    sessions = {name: sam.video(images, policy=policy) for name, policy in policies().items()}
    numbers = object_numbers(labels[0])
    for session in sessions.values():
        for number in numbers:
            session.prompt(0, int(number), mask=labels[0] == number)
    runs = {name: session.track() for name, session in sessions.items()}
    seconds = dict.fromkeys(sessions, 0.0)
    maps: dict[str, list[np.ndarray]] = {name: [] for name in sessions}
    for _ in labels:
        for name, run in runs.items():
            encoding, start = shared.seconds, time.process_time()
            result = next(run)
            seconds[name] += time.process_time() - start - (shared.seconds - encoding)
            maps[name].append(label_map(result.masks.logits, result.masks.size_hw))
    maps["sam2long, at the moment"] = maps["sam2long"]
    maps["sam2long"] = [label_map(r.masks.logits, r.masks.size_hw) for r in sessions["sam2long"].results()]
    scores = {name: j_and_f(found, labels, numbers) for name, found in maps.items()}
    frames = len(labels) * len(numbers)
    return scores, {name: total / frames for name, total in seconds.items()}, maps


def j_and_f(found: list[np.ndarray], labels: list[np.ndarray], numbers: np.ndarray) -> list[float]:
    """J&F of each object."""
    scores = []
    for position, number in enumerate(numbers, start=1):
        rows = [
            (region_j(mask == position, truth == number) + boundary_f(mask == position, truth == number)) / 2
            for mask, truth in zip(found[1:-1], labels[1:-1], strict=True)
        ]
        scores.append(float(np.mean(rows)))
    return scores


def videos(
    data: Path | None, kinds: list[str], seeds: int, every: int
) -> Iterator[tuple[str, str, Any, list[np.ndarray]]]:
    """The set, the name, the images and the labels of each video."""
    for video in read_videos(data) if data else ():
        labels = [video.labels(frame) for frame in range(0, len(video.images), every)]
        yield SETS[0], video.name, video.images[::every], labels
    for kind in kinds:
        for seed in range(seeds):
            made = hard_video(kind, seed)
            yield kind, made.name, list(made.images), [mask.astype(np.uint8) for mask in made.masks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder laid out as DAVIS")
    parser.add_argument("--seeds", type=int, default=3, help="made videos of each kind")
    parser.add_argument("--kind", action="append", choices=KINDS, help="of made videos; repeatable; default all")
    parser.add_argument("--every", type=int, default=1, help="of the annotated videos, every n-th frame")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path, help="write four frames of a made video for each policy")
    options = parser.parse_args()
    setting = {"model": options.model, "device": device_name(), "every": options.every, "seeds": options.seeds}
    rows = finished(options.json, setting)
    done = {row["video"] for row in rows}
    sam = masklet.load(options.model)
    shared = SharedEncoding(sam)
    for group, name, images, labels in videos(options.data, options.kind or [*KINDS], options.seeds, options.every):
        if name in done:
            continue
        found, spent, maps = measure(sam, shared, images, labels)
        if options.figure and name == SHOWN_IN_FIGURE:
            figure(images, maps).save(options.figure)
        rows.append({"set": group, "video": name, "j_and_f": found, "seconds": spent})
        print(group, name, {policy: round(float(np.mean(values)), 3) for policy, values in found.items()}, flush=True)
        if options.json:
            save(setting, rows, options.json)
    report(table(rows), setting, rows, options.json)


def finished(path: Path | None, setting: dict[str, Any]) -> list[dict[str, Any]]:
    """The videos that an interrupted run measured with this setting."""
    if path is None or not path.exists():
        return []
    earlier = json.loads(path.read_text())
    return earlier["results"] if earlier["setting"] == setting else []


def table(rows: list[dict[str, Any]]) -> Table:
    """A row for each policy: the mean over the objects of each set, and the median time."""
    groups = [group for group in SETS if any(row["set"] == group for row in rows)]
    counts = [f"{group} ({sum(row['set'] == group for row in rows)})" for group in groups]
    result = Table("policy", *counts, "CPU ms for a frame")
    for policy in rows[0]["j_and_f"]:
        means = [
            np.mean([j for row in rows if row["set"] == group for j in row["j_and_f"][policy]]) for group in groups
        ]
        times = [1000 * row["seconds"][policy] for row in rows if policy in row["seconds"]]
        result.add_row(policy, *(f"{mean:.3f}" for mean in means), f"{np.median(times):.0f}" if times else "")
    return result


def figure(images: Any, maps: dict[str, list[np.ndarray]]) -> Image.Image:
    """A row for each policy: the prompted frame, two in which the object goes and comes, and the last."""
    shown = ("paper", "sam3", "samurai", "dam4sam", "sam2long")
    times = [0, len(images) // 3, 3 * len(images) // 4, len(images) - 1]
    side, margin = 160, 80
    canvas = Image.new("RGB", (margin + side * len(times), side * len(shown)), "white")
    draw = ImageDraw.Draw(canvas)
    for row, name in enumerate(shown):
        draw.text((margin // 2, side * row + side // 2), name, fill="black", anchor="mm", font_size=16)
        for column, frame in enumerate(times):
            mask = maps[name][frame] > 0
            painted = masklet.Masks(
                mask[None], np.where(mask[None], 1.0, -1.0).astype(np.float32), np.ones(1, np.float32), np.zeros(1, int)
            ).overlay(images[frame])
            canvas.paste(painted.resize((side, side)), (margin + side * column, side * row))
    return canvas


if __name__ == "__main__":
    main()
