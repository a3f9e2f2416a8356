"""``python -m masklet.training CONFIG.yaml --data FOLDER --run FOLDER``: train, or go on with a run that was cut."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import time
from pathlib import Path

import torch

from masklet.model.sam2 import Sam2Model
from masklet.training.config import read_config
from masklet.training.loop import Trainer
from masklet.training.sources import read_sources

LOG_EVERY, SAVE_EVERY = 20, 200
"""Steps. Saved are ``state.pt``, to go on from, and ``model/``, the running mean of the weights, for use."""


def main() -> None:
    """Parse, train, log, save."""
    parser = argparse.ArgumentParser(prog="python -m masklet.training", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file, such as nano.yaml beside this module")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of cutouts-*.zip, photos-*.zip, instances-*.zip"
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of the log and the state; a run there goes on")
    parser.add_argument("--weights", help="model to begin a new run from, instead of from nothing; the same network")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    arguments.run.mkdir(parents=True, exist_ok=True)
    trainer, state = Trainer(read_config(arguments.config)), arguments.run / "state.pt"
    if state.exists():
        trainer.load(state)
        logging.info("going on after step %d", trainer.step)
    elif arguments.weights is not None:
        trainer.start_from(Sam2Model.from_pretrained(arguments.weights))
    else:
        for step, iou in enumerate(trainer.teach_geometry(), start=1):
            if step % 100 == 0:
                logging.info("geometry: step %d, IoU %.3f", step, iou)
        trainer.save(state)
    sources = read_sources(arguments.data, held_out=False)
    logging.info("%d cut-outs, %d photos", len(sources.cutouts), len(sources.photos))

    began, first = time.monotonic(), trainer.step
    with (arguments.run / "log.jsonl").open("a") as log:
        for report in trainer.run(sources):
            if report.step % LOG_EVERY == 0:
                seconds = (time.monotonic() - began) / (report.step - first)
                line = json.dumps(dataclasses.asdict(report) | {"seconds_per_step": seconds})
                print(line, file=log, flush=True)
                logging.info("%s", line)
            if report.step % SAVE_EVERY == 0 or report.step == trainer.config.steps:
                trainer.save(state)
                trainer.averaged_model().save_pretrained(arguments.run / "model", dtype=torch.float16)


if __name__ == "__main__":
    main()
