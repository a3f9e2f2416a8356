"""``python -m masklet.evaluation --data FOLDER [--model NAME]``: mean IoU from one click and from a box, as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from masklet.evaluation.folder import read_folder
from masklet.evaluation.measure import measure, summarise
from masklet.segmenter import load


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m masklet.evaluation", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of images/NAME.jpg and masks/NAME.png")
    parser.add_argument("--model", help="name, folder or .pt file; the embedded model if not given")
    arguments = parser.parse_args()
    segmenter = load(arguments.model)
    print(json.dumps(summarise(measure(segmenter, read_folder(arguments.data)))))


if __name__ == "__main__":
    main()
