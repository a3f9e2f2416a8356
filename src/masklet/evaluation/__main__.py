"""How good a model is, as JSON: in pictures, or in films.

``python -m masklet.evaluation --data FOLDER [--model NAME]``: mean IoU from one click and from a box.
``python -m masklet.evaluation --films FOLDER [--model NAME]``: J, F and J&F from the first frame's masks, beside those
of the first frame's masks kept still; a line for each film, then the means over objects.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from masklet.evaluation.folder import read_folder
from masklet.evaluation.measure import measure, summarise
from masklet.evaluation.video import evaluate_films, summarise_films
from masklet.segmenter import Segmenter, load


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        prog="python -m masklet.evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = parser.add_mutually_exclusive_group(required=True)
    folder.add_argument("--data", type=Path, help="folder of images/NAME.jpg and masks/NAME.png")
    folder.add_argument("--films", type=Path, help="folder of JPEGImages/FILM/*.jpg and Annotations/FILM/*.png")
    parser.add_argument("--model", help="name, folder or .pt file; the embedded model if not given")
    arguments = parser.parse_args()
    segmenter = load(arguments.model)
    if arguments.films:
        print_films(segmenter, arguments.films)
    else:
        print(json.dumps(summarise(measure(segmenter, read_folder(arguments.data)))))


def print_films(segmenter: Segmenter, folder: Path) -> None:
    """Each film as soon as it is done, then the summary."""
    scores = []
    for score in evaluate_films(segmenter, folder):
        print(json.dumps(asdict(score) | {"j_and_f": score.j_and_f, "still_j_and_f": score.still_j_and_f}), flush=True)
        scores.append(score)
    print(json.dumps(summarise_films(scores)))


if __name__ == "__main__":
    main()
