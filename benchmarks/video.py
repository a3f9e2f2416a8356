"""Seconds a frame for following 1, 4 and 16 objects, beside transformers, in one process and turn by turn.

    python benchmarks/video.py [--models embedded tiny] [--objects 1 4 16] [--frames 12] [--warm-up 7] [--json FILE]

Both networks have the same weights (random for tiny), are given the same pixels and prompts, in float32, and advance
frame by frame in turn; so the machine's speed drifts for both. The first frames fill the memory and are not measured.
A frame's time is that of everything after its pixels are made: encoding, tracking, and masks of the video's size. The
ratio is the median of the frames' own ratios; above 1 masklet is faster.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from common import device_name, report, seconds
from rich.table import Table
from torch import Tensor
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

import masklet
from masklet.engine import make_engine
from masklet.prompts import to_model_pixels
from masklet.segmenter import Segmenter

EMBEDDED = "embedded"
SIZE_HW = (480, 854)


def video(count: int) -> list[np.ndarray]:
    """A noisy image that slides by."""
    wide = np.random.default_rng(0).integers(0, 255, (SIZE_HW[0] // 8, SIZE_HW[1] // 8 + count, 3), dtype=np.uint8)
    big = wide.repeat(8, 0).repeat(8, 1)
    return [np.ascontiguousarray(big[:, 4 * i : 4 * i + SIZE_HW[1]]) for i in range(count)]


def models(name: str, resolution: int | None, device: str) -> tuple[Segmenter, torch.nn.Module]:
    """Ours and theirs, of the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        if name == EMBEDDED:
            model = masklet.load().model
        else:
            torch.manual_seed(0)
            model = masklet.Sam2Model(masklet.Sam2Config(image_size=resolution or 1024))
        model.mask_decoder.pred_obj_score_head.proj_out.bias.data.fill_(10.0)  # that nothing is skipped as absent
        model.save_pretrained(folder)
        ours = masklet.load(folder, device=device)
        theirs = transformers.Sam2VideoModel.from_pretrained(folder).eval().to(device)
    return ours, theirs


class Prepared:
    """Gives out pixels that were made before: resizing is not what is compared."""

    def __init__(self, pixels: list[Tensor], size: int) -> None:
        self.input_hw = (size, size)
        self.coming: Iterator[Tensor] = iter(pixels)

    def frame_values(self, image: np.ndarray) -> Tensor:
        """The next of them; ``image`` is that which it was made of."""
        return next(self.coming)


def track(
    sam: Segmenter, theirs: torch.nn.Module, frames: int, objects: int, warm_up: int, device: str
) -> list[tuple[float, float]]:
    """(ours, theirs) seconds of each frame after ``warm_up``."""
    images = video(frames)
    side = sam.image_processor.input_hw[0]
    pixels = [sam.image_processor.frame_values(image).to(device) for image in images]
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(objects, 2, generator=generator) * torch.tensor([SIZE_HW[1], SIZE_HW[0]])
    live = Segmenter(make_engine(sam.model), Prepared(pixels, side)).stream()
    session = Sam2VideoInferenceSession(
        video_height=SIZE_HW[0],
        video_width=SIZE_HW[1],
        dtype=torch.float32,
        inference_device=device,
        inference_state_device=device,
        video_storage_device=device,
    )
    prompts = {name: {"points": [tuple(point.tolist())]} for name, point in enumerate(points)}
    places = to_model_pixels(points, size_hw=SIZE_HW, input_hw=(side, side))
    for name in range(objects):
        told = {
            "point_coords": places[name].view(1, 1, 1, 2).to(device),
            "point_labels": torch.ones(1, 1, 1, dtype=torch.int32, device=device),
        }
        session.add_point_inputs(session.obj_id_to_idx(name), 0, told)
        session.obj_with_new_inputs.append(name)

    @torch.inference_mode()
    def push_theirs(index: int) -> np.ndarray:
        masks = theirs(inference_session=session, frame=pixels[index]).pred_masks
        return (F.interpolate(masks, SIZE_HW, mode="bilinear", align_corners=False) > 0).cpu().numpy()

    pairs = []
    for index, image in enumerate(images):
        ours = seconds(lambda i=index, p=image: live.push(p, prompts if i == 0 else None))
        pairs.append((ours, seconds(lambda i=index: push_theirs(i))))
    return pairs[warm_up:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[EMBEDDED, "tiny"], default=[EMBEDDED, "tiny"])
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--warm-up", type=int, default=7, help="frames not measured: until the memory is full")
    parser.add_argument("--resolution", type=int, help="of tiny, instead of 1024: to try this out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.frames <= args.warm_up:
        parser.error(f"--frames {args.frames} leaves nothing to measure after --warm-up {args.warm_up}")

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    rows = []
    for name in args.models:
        ours, theirs = models(name, args.resolution, args.device)
        for objects in args.objects:
            pairs = track(ours, theirs, args.frames, objects, args.warm_up, args.device)
            rows.append(
                {
                    "model": name,
                    "resolution": ours.image_processor.input_hw[0],
                    "objects": objects,
                    "masklet_s": statistics.median(a for a, _ in pairs),
                    "transformers_s": statistics.median(b for _, b in pairs),
                    "ratio": statistics.median(b / a for a, b in pairs),
                    "ratio_min": min(b / a for a, b in pairs),
                    "ratio_max": max(b / a for a, b in pairs),
                }
            )
    setting = {
        "device": device_name(args.device),
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "video": f"{SIZE_HW[1]}×{SIZE_HW[0]}",
        "frames": args.frames - args.warm_up,
        "masklet": masklet.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    columns = ("model", "input", "objects", "masklet (s/frame)", "transformers (s/frame)", "ratio", "min – max")
    table = Table(*columns)
    for row in rows:
        table.add_row(
            row["model"],
            str(row["resolution"]),
            str(row["objects"]),
            f"{row['masklet_s']:.3f}",
            f"{row['transformers_s']:.3f}",
            f"{row['ratio']:.2f}",
            f"{row['ratio_min']:.2f} – {row['ratio_max']:.2f}",
        )
    report(table, setting, rows, args.json)


if __name__ == "__main__":
    main()
