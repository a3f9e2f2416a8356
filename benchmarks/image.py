"""Encode and decode times beside transformers, in one process, turn by turn, on the same random weights.

    python benchmarks/image.py [--models tiny base-plus] [--work encode click clicks image load] [--objects 64]
        [--rounds 3] [--json image.json]

Sides: masklet's own API with ``dtype="auto"`` and with float32; transformers in float32 and under bfloat16 autocast;
and masklet's classes with transformers' names (float32, as transformers loads them). ``image`` goes from an array to
the mask of a click, through our own API and through the class with the name of Meta's. Medians over the rounds; a ratio
is the median of the rounds' own ratios, by wall time and, in brackets, by CPU time. Above 1 a side is faster.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from common import (
    OURS,
    OURS_EXACT,
    SIZES,
    THEIRS,
    THEIRS_BF16,
    autocast,
    report,
    rows_of,
    setting,
    table_of,
    take_turns,
)

import masklet
from masklet.checkpoints.meta import released_config
from masklet.compat.sam2.network import SAM2Base
from masklet.compat.sam2.sam2_image_predictor import SAM2ImagePredictor
from masklet.model.prompt_encoder import Prompts
from masklet.model.sam2 import Sam2Model

DROP_IN, DROP_IN_META = "masklet.compat.transformers float32", "masklet.compat.sam2 float32"
WORK = ("encode", "click", "clicks", "image", "load")

Sides = dict[str, Callable[[], object]]


class Models:
    """One network, loaded by all sides."""

    def __init__(self, size: str, device: str) -> None:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            Sam2Model(released_config(*SIZES[size])).save_pretrained(folder)
            self.auto = masklet.load(folder, device)
            self.exact = masklet.load(folder, device, "float32")
            self.drop_in = masklet.Sam2Model.from_pretrained(folder).to(device)
            self.theirs = transformers.Sam2Model.from_pretrained(folder).eval().to(device)
        self.device = device
        self.pixels = torch.randn(1, 3, 1024, 1024, device=device)

    def encode(self) -> Sides:
        """Pixels to features."""
        pixels = self.pixels
        return {
            OURS: lambda: self.auto.engine.encode(pixels),
            OURS_EXACT: lambda: self.exact.engine.encode(pixels),
            DROP_IN: lambda: self.drop_in.get_image_embeddings(pixels),
            THEIRS: lambda: self.theirs.get_image_embeddings(pixels),
            THEIRS_BF16: autocast(lambda: self.theirs.get_image_embeddings(pixels), self.device),
        }

    def decode(self, count: int) -> Sides:
        """A click each for some objects, from features to logits."""
        points = torch.rand(1, count, 1, 2, device=self.device) * 1024
        labels = torch.ones(1, count, 1, dtype=torch.long, device=self.device)
        prompts, features = Prompts(points, labels), self.exact.engine.encode(self.pixels)
        embeddings = self.drop_in.get_image_embeddings(self.pixels)
        named = {"image_embeddings": embeddings, "input_points": points, "input_labels": labels}
        return {
            OURS: lambda: self.auto.engine.decode(features, prompts, multimask=True),
            OURS_EXACT: lambda: self.exact.engine.decode(features, prompts, multimask=True),
            DROP_IN: lambda: self.drop_in(**named),
            THEIRS: lambda: self.theirs(**named),
            THEIRS_BF16: autocast(lambda: self.theirs(**named), self.device),
        }

    def image(self) -> Sides:
        """An array to the mask of a click."""
        array = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
        predictor = SAM2ImagePredictor(SAM2Base(self.exact.model, self.exact.image_processor))

        def predict() -> object:
            predictor.set_image(array)
            return predictor.predict(np.array([[500, 375]]), np.array([1]))

        return {
            OURS: lambda: self.auto.image(array).predict(points=[(500, 375)], candidates=True),
            OURS_EXACT: lambda: self.exact.image(array).predict(points=[(500, 375)], candidates=True),
            DROP_IN_META: predict,
        }

    def load(self) -> Sides:
        """A folder to a network."""
        folder = tempfile.mkdtemp()
        self.exact.model.save_pretrained(folder)
        return {
            OURS_EXACT: lambda: Sam2Model.from_pretrained(folder),
            DROP_IN: lambda: masklet.Sam2Model.from_pretrained(folder),
            THEIRS: lambda: transformers.Sam2Model.from_pretrained(folder),
        }


def measure(size: str, work: list[str], objects: int, rounds: int, device: str) -> list[dict[str, object]]:
    """Rows of one network."""
    models = Models(size, device)
    sides = {
        "encode": models.encode,
        "click": lambda: models.decode(1),
        "clicks": lambda: models.decode(objects),
        "image": models.image,
        "load": models.load,
    }
    names = {"clicks": f"{objects} clicks"}
    rows = []
    for name in work:
        # Tensors made in inference mode cannot be parameters.
        with torch.inference_mode(name != "load"):
            times = take_turns(sides[name](), rounds)
        rows += rows_of(times, model=size, work=names.get(name, name))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=["tiny", "base-plus"])
    parser.add_argument("--work", nargs="+", choices=WORK, default=[*WORK])
    parser.add_argument("--objects", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    rows = [row for size in args.models for row in measure(size, args.work, args.objects, args.rounds, args.device)]
    report(table_of(rows, ("model", "work")), setting(args.device, resolution=1024), rows, args.json)


if __name__ == "__main__":
    main()
