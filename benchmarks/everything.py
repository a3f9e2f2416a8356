"""All masks of an image, compared with a straightforward generator on transformers' model with the same weights.

    python benchmarks/everything.py [--image examples/images/truck.jpg] [--points 32] [--side 1024] [--rounds 3]
        [--iou 0.64 --stability 0.6] [--memory] [--json everything.json]

SAM 2.1 tiny with seeded random weights. The other side works as transformers' pipeline does: batches of 64 points, all
candidates at the image's size, then their scores, boxes, NMS and run lengths. Boxes are not suppressed, since with
random weights every box is the whole image. The sides take turns. Times are without the image encode, which is measured
separately and subtracted; the ratio is the median of the ratios of the rounds. With ``--memory`` each side runs once
more in its own process, whose peak is reported.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pycocotools.mask as coco
import torch
import torch.nn.functional as F
from common import (
    OURS,
    OURS_EXACT,
    THEIRS,
    THEIRS_BF16,
    both_clocks,
    peak_mb,
    report,
    rows_of,
    setting,
    table_of,
)

from masklet.checkpoints.transformers import config_to_json
from masklet.config import Sam2Config
from masklet.engine import make_engine
from masklet.images.reading import read_image
from masklet.masks import box_nms, decode_rle, mask_ious, text_rle
from masklet.model.sam2 import Sam2Model
from masklet.processing import ImageProcessor
from masklet.segmenter import Segmenter

POINT_BATCH = 64
NO_NMS = 1.1


def seeded_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights with activations of normal size: every tensor comes from a generator seeded with its name."""
    return {name: seeded_tensor(name, tuple(t.shape)) for name, t in model.state_dict().items()}


def seeded_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape).astype(np.float32)
    if name.endswith("weight") and len(shape) == 1:
        draw = 1 + 0.1 * draw
    elif name.endswith("bias"):
        draw = 0.02 * draw
    elif name.endswith("weight") and "embed" not in name.rsplit(".", 2)[-2]:
        draw = draw / math.sqrt(math.prod(shape[1:]))
    else:
        draw = 0.5 * draw
    return torch.from_numpy(np.ascontiguousarray(draw, dtype=np.float32))


class Masklet:
    """masklet, with products in bfloat16 where the device is faster at them."""

    mixed = True

    def __init__(self, args: argparse.Namespace) -> None:
        model = Sam2Model(Sam2Config(image_size=args.side))
        model.load_state_dict(seeded_weights(model))
        engine = make_engine(model.eval().requires_grad_(False).to(args.device), mixed=self.mixed)
        self.sam = Segmenter(engine, ImageProcessor(args.side))
        self.args, self.image = args, read_image(args.image)

    def encode(self) -> object:
        """Encodes the image."""
        return self.sam.image(self.image)

    def generate(self) -> list[dict]:
        """Run lengths of all masks."""
        args = self.args
        found = self.sam.everything(
            self.image,
            points_per_side=args.points,
            iou_threshold=args.iou,
            stability_threshold=args.stability,
            box_nms=NO_NMS,
            packed=True,
        )
        return found.to_rle()


class MaskletFloat32(Masklet):
    """masklet in float32."""

    mixed = False


class Transformers:
    """The straightforward generator."""

    is_autocast = False

    def __init__(self, args: argparse.Namespace) -> None:
        import transformers

        config = config_to_json(Sam2Config(image_size=args.side))
        content = {key: value for key, value in config.items() if key.endswith("_config")}
        model = transformers.Sam2Model(transformers.Sam2Config(**content)).eval().requires_grad_(False)
        model.load_state_dict(seeded_weights(model))
        self.model, self.args, self.image = model.to(args.device), args, read_image(args.image)

    @torch.inference_mode()
    def encode(self) -> list[torch.Tensor]:
        """Encodes the image."""
        pixels = ImageProcessor(self.args.side).pixel_values(self.image)
        with torch.autocast(self.args.device, torch.bfloat16, enabled=self.is_autocast):
            return self.model.get_image_embeddings(pixels.to(self.args.device))

    @torch.inference_mode()
    def generate(self) -> list[dict]:
        """Run lengths of all masks."""
        args, size_hw = self.args, self.image.shape[:2]
        embeddings = self.encode()
        middles = (torch.arange(args.points) + 0.5) / args.points * args.side
        grid = torch.stack(torch.meshgrid(middles, middles, indexing="xy"), -1).reshape(1, -1, 1, 2).to(args.device)
        runs, scores, boxes = [], [], []
        for points in grid.split(POINT_BATCH, dim=1):
            labels = torch.ones(points.shape[:3], dtype=torch.long, device=args.device)
            with torch.autocast(args.device, torch.bfloat16, enabled=self.is_autocast):
                out = self.model(
                    image_embeddings=embeddings, input_points=points, input_labels=labels, multimask_output=True
                )
            logits = F.interpolate(out.pred_masks[0].float(), size_hw, mode="bilinear").flatten(0, 1)
            ious = out.iou_scores.flatten().float()
            strict, loose = ((logits > cut_off).sum((1, 2)) for cut_off in (1, -1))
            kept = (ious > args.iou) & (strict / loose >= args.stability)
            for mask, score in zip(logits[kept] > 0, ious[kept], strict=True):
                mask = mask.cpu().numpy()
                columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
                boxes.append((columns[0], rows[0], columns[-1], rows[-1]))
                scores.append(float(score))
                runs.append(text_rle(coco.encode(np.asfortranarray(mask))))
        order = box_nms(np.array(boxes, float).reshape(-1, 4), np.array(scores), NO_NMS)
        return [runs[i] for i in order]


class TransformersAutocast(Transformers):
    """The same under autocast."""

    is_autocast = True


SIDES = {
    OURS: Masklet,
    OURS_EXACT: MaskletFloat32,
    THEIRS: Transformers,
    THEIRS_BF16: TransformersAutocast,
}


def without_encode(side: Masklet | Transformers) -> tuple[dict[str, float], list[dict]]:
    """Seconds without the image encode by both clocks, and the masks."""
    encode, found = both_clocks(side.encode), []
    whole = both_clocks(lambda: found.extend(side.generate()))
    return {clock: whole[clock] - encode[clock] for clock in whole}, found


def same_share(ours: list[dict], theirs: list[dict]) -> float:
    """Share of the masks of the side with more of them that have a counterpart with an IoU above 0.99."""
    if not ours or not theirs:
        return float(len(ours) == len(theirs))
    is_same = mask_ious(decode_rle(ours), decode_rle(theirs)) > 0.99
    return min(is_same.any(0).sum(), is_same.any(1).sum()) / max(is_same.shape)


def peak_of(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Peak memory of a process that loads one side and runs it once."""
    options = [f"--{key}={getattr(args, key)}" for key in ("image", "points", "side", "iou", "stability", "device")]
    done = subprocess.run([sys.executable, __file__, *options, "--only", name], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def own_peak(args: argparse.Namespace) -> dict[str, float]:
    side = SIDES[args.only](args)
    side.encode()
    loaded = peak_mb() if args.device == "cpu" else torch.cuda.max_memory_allocated() / 1e6
    side.generate()
    peak = peak_mb() if args.device == "cpu" else torch.cuda.max_memory_allocated() / 1e6
    return {"encoded_mb": loaded, "peak_mb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, default=Path(__file__).parents[1] / "examples/images/truck.jpg")
    parser.add_argument("--points", type=int, default=32)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--iou", type=float, default=0.64)
    parser.add_argument("--stability", type=float, default=0.6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=[*SIDES])
    parser.add_argument("--only", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(own_peak(args)))
        return

    sides = {name: side(args) for name, side in SIDES.items() if name in args.sides}
    for side in sides.values():
        side.encode()
    times, masks = {name: [] for name in sides}, {}
    for _ in range(args.rounds):
        for name, side in sides.items():
            took, masks[name] = without_encode(side)
            times[name].append(took)
    rows = rows_of(times, work="masks without the encode")
    reference = masks.get(THEIRS)
    for row in rows:
        row["masks"] = len(masks[row["side"]])
        if reference is not None:
            row["same"] = same_share(masks[row["side"]], reference)
        if args.memory:
            row["memory"] = peak_of(row["side"], args)
    conditions = setting(args.device, resolution=args.side, points=args.points**2)
    table = table_of(rows, ("work", "masks", *(("same",) if reference is not None else ())))
    report(table, conditions, rows, args.json)


if __name__ == "__main__":
    main()
