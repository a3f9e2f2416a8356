"""Seconds per frame of tracking 1, 4 and 16 objects with a full memory, beside transformers in the same process.

    python benchmarks/video.py [--models embedded tiny base-plus] [--objects 1 4 16] [--rounds 3] [--sides …]
        [--json FILE]

All sides have the same weights (random, except for the embedded model), frames and prompts, and advance frame by frame
in turn, so that changes of the machine's speed affect all. A frame of ours includes everything after its pixels are
prepared: encoding, tracking, and masks of the video's size; ``masklet.compat.sam2`` prepares the pixels as well. The
first frames fill the memory and are not measured. To save time, transformers runs the first two of them and takes the
memory of the second for the others: what a frame costs does not depend on what the memory holds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from common import (
    OURS,
    OURS_EXACT,
    SIZES,
    THEIRS,
    THEIRS_BF16,
    autocast,
    both_clocks,
    report,
    rows_of,
    setting,
    table_of,
)
from torch import Tensor

import masklet
from masklet.checkpoints.meta import released_config
from masklet.compat import transformers as drop_in
from masklet.compat.sam2.sam2_camera_predictor import SAM2CameraPredictor
from masklet.model.sam2 import Sam2Model
from masklet.prompts import to_model_pixels
from masklet.segmenter import Segmenter

EMBEDDED = "embedded"
DROP_IN, DROP_IN_META = "masklet.compat.transformers float32", "masklet.compat.sam2 float32"
SIDES = (OURS, OURS_EXACT, DROP_IN, DROP_IN_META, THEIRS, THEIRS_BF16)
SIZE_HW = (480, 854)
FILL = 7
"""Frames before the measurement: the prompted one, and six that fill the memory of a released model."""

Step = Callable[[int], object]
"""Takes the frame of an index."""


def video(count: int) -> list[np.ndarray]:
    """A noisy image that moves sideways."""
    wide = np.random.default_rng(0).integers(0, 255, (SIZE_HW[0] // 8, SIZE_HW[1] // 8 + count, 3), dtype=np.uint8)
    big = wide.repeat(8, 0).repeat(8, 1)
    return [np.ascontiguousarray(big[:, 4 * i : 4 * i + SIZE_HW[1]]) for i in range(count)]


class Models:
    """One network, loaded by all sides."""

    def __init__(self, name: str, resolution: int | None, device: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            if name == EMBEDDED:
                model = masklet.load(dtype="float32").model
            else:
                torch.manual_seed(0)
                model = Sam2Model(released_config(*SIZES[name], **({"image_size": resolution} if resolution else {})))
            model.mask_decoder.pred_obj_score_head.proj_out.bias.data.fill_(10.0)  # so that no object is absent
            model.save_pretrained(folder)
            self.auto = masklet.load(folder, device)
            self.exact = masklet.load(folder, device, "float32")
            self.drop_in = drop_in.Sam2VideoModel.from_pretrained(folder).eval().to(device)
            self.theirs = transformers.Sam2VideoModel.from_pretrained(folder).eval().to(device)
        self.device = device

    @property
    def side(self) -> int:
        """Of the square input."""
        return self.exact.image_processor.input_hw[0]


class Prepared:
    """Returns pixels that were prepared before, since resizing is not measured."""

    def __init__(self, pixels: list[Tensor], size: int) -> None:
        self.input_hw = (size, size)
        self._pixels: Iterator[Tensor] = iter(pixels)

    def frame_values(self, image: np.ndarray) -> Tensor:
        """The pixels of the next frame, which were made of ``image``."""
        return next(self._pixels)


class Clip:
    """Frames and clicks, the same for all sides."""

    def __init__(self, models: Models, frames: int, objects: int) -> None:
        self.models = models
        self.images = video(frames)
        processor = models.exact.image_processor
        self.pixels = [processor.frame_values(image).to(models.device) for image in self.images]
        generator = torch.Generator().manual_seed(0)
        self.points = torch.rand(objects, 2, generator=generator) * torch.tensor([SIZE_HW[1], SIZE_HW[0]])

    def ours(self, sam: Segmenter) -> Step:
        """Our own stream."""
        live = Segmenter(sam.engine, Prepared(self.pixels, self.models.side)).stream()
        prompts = {name: {"points": [tuple(point.tolist())]} for name, point in enumerate(self.points)}
        return lambda index: live.push(self.images[index], None if index else prompts)

    def meta(self) -> Step:
        """Our class for live video with the methods of Meta's forks."""
        exact = self.models.exact
        predictor = SAM2CameraPredictor(exact.model, exact.image_processor)

        def step(index: int) -> object:
            if index:
                return predictor.track(self.images[index])
            predictor.load_first_frame(self.images[0])
            for name, point in enumerate(self.points):
                predictor.add_new_prompt(0, name, points=point[None].numpy(), labels=np.array([1]))
            return None

        return step

    def sessions(self, model: torch.nn.Module, session_class: type) -> Step:
        """Transformers' classes, or ours with their names."""
        device, side = self.models.device, self.models.side
        session = session_class(
            video_height=SIZE_HW[0],
            video_width=SIZE_HW[1],
            dtype=torch.float32,
            inference_device=device,
            inference_state_device=device,
            video_storage_device=device,
        )
        places = to_model_pixels(self.points, size_hw=SIZE_HW, input_hw=(side, side))
        for name, place in enumerate(places):
            inputs = {
                "point_coords": place.view(1, 1, 1, 2).to(device),
                "point_labels": torch.ones(1, 1, 1, dtype=torch.int32, device=device),
            }
            session.add_point_inputs(session.obj_id_to_idx(name), 0, inputs)
            session.obj_with_new_inputs.append(name)
        is_theirs = type(session).__module__.startswith("transformers.")

        @torch.inference_mode()
        def step(index: int) -> object:
            if is_theirs and 2 <= index < FILL:
                session.add_new_frame(self.pixels[index], index)
                for outputs in session.output_dict_per_obj.values():
                    outputs["non_cond_frame_outputs"][index] = outputs["non_cond_frame_outputs"][1]
                return None
            masks = model(inference_session=session, frame=self.pixels[index]).pred_masks
            return (F.interpolate(masks, SIZE_HW, mode="bilinear", align_corners=False) > 0).cpu().numpy()

        return step

    def step_of(self, side: str) -> Step:
        """How a side takes a frame."""
        models = self.models
        if side in (OURS, OURS_EXACT):
            return self.ours(models.auto if side == OURS else models.exact)
        if side == DROP_IN_META:
            return self.meta()
        if side == DROP_IN:
            return self.sessions(models.drop_in, drop_in.Sam2VideoInferenceSession)
        step = self.sessions(
            models.theirs, transformers.models.sam2_video.modeling_sam2_video.Sam2VideoInferenceSession
        )
        return step if side == THEIRS else lambda index: autocast(lambda: step(index), models.device)()


def track(models: Models, sides: list[str], rounds: int, objects: int) -> dict[str, list[dict[str, float]]]:
    """Seconds of each frame with a full memory."""
    clip = Clip(models, FILL + rounds, objects)
    steps = {side: clip.step_of(side) for side in sides}
    times: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for index in range(FILL + rounds):
        for side, step in steps.items():
            took = both_clocks(lambda step=step, index=index: step(index))
            if index >= FILL:
                times[side].append(took)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[EMBEDDED, *SIZES], default=[EMBEDDED, "tiny", "base-plus"])
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3, help="measured frames")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=[*SIDES])
    parser.add_argument("--resolution", type=int, help="input size, instead of 1024, for a quick try")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    rows = []
    for name in args.models:
        models = Models(name, args.resolution, args.device)
        for objects in args.objects:
            times = track(models, args.sides, args.rounds, objects)
            rows += rows_of(times, model=name, input=models.side, objects=objects)
    conditions = setting(args.device, video=f"{SIZE_HW[1]}×{SIZE_HW[0]}")
    report(table_of(rows, ("model", "input", "objects")), conditions, rows, args.json)


if __name__ == "__main__":
    main()
