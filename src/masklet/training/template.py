"""The configuration that a run on a data set starts from, with comments."""

from __future__ import annotations

import json
from pathlib import Path

from masklet.datasets import VIDEO_LAYOUTS
from masklet.datasets.detection import DataLocation

EXAMPLE = DataLocation("folder", Path("images"))
"""Data in a configuration that is written before there is any."""

IMAGES = "{steps: 300, train: decoder, batch_size: 4, objects: 4, rounds: 8}"
CLIPS = "{steps: 300, train: memory, batch_size: 2, objects: 3, rounds: 3, frames: 8}"

TEMPLATE = """\
# A training run: masklet train THIS_FILE --out RUN

model: nano                  # or sam2.1-hiera-tiny, a Hub repository, a folder, a .pt file
data:
  layout: {layout}           # folder, coco, sa1b, videos (DAVIS, YouTube-VOS) or sav
  path: {path}
{annotations}  validation: 0.1            # share held out to measure on; or other data: {{layout: …, path: …}}
  # split_masks: true        # layout folder: masks are of classes, and every connected part is an object
  # weight: 1                # with several data sets (a list), the share of this one
  augment:                   # probabilities
    flip: 0.5                # 0 where left and right differ
    # flip_vertical: 0.5     # for images without an upright direction
    # crop: 0.5              # a window of 0.25 to 1 of the area, scaled
    # colour: 0.5            # brightness, contrast, saturation, hue
    # grey: 0.1
    # blur: 0.1
    # jpeg: 0.2
stages:
  # train: decoder, lora, frozen_encoder, everything or memory. rounds: a prompt, then corrections.
  # Also: input_size, losses: {{focal: 20, dice: 1, iou: 1, object_score: 1}}, prompts: {{click: 0.5, box: 0.5}}.
  # frames above 1 trains on clips; image_steps: 0.5 does half of such a stage's steps on
  # images, image_batch_size of them at a time.
  - {stage}
learning_rate: 1.0e-4        # the highest; it falls to zero
warmup_steps: 20
# rates: {{image_encoder: 0.2}}   # factors on the learning rate by component
# layer_decay: 0.9           # of the encoder's blocks, the first of which learn slowest
# weight_decay: 0.01
# max_gradient_norm: 1.0
# ema_decay: 0.99            # of the moving average of the weights, which is saved
# lora: {{rank: 8, alpha: 16, targets: ["vision_encoder.*.attn.*"]}}
# seed: 0

# Memory and speed. These may change when a run is resumed, and so may paths and steps.
precision: auto              # bfloat16 or float16 where there is one; or float32
micro_batches: 1             # more of them: less memory
checkpoint_activations: false   # true: much less memory, a third more time
# compile: true              # the image encoder; for GPUs, without cache
workers: 2                   # processes that read data
# cache: features            # folder; encodes each image once if the encoder is frozen and only flip is above 0
# cache_gb: 20
save_every: 200              # steps
validate_every: 200
validation_objects: 200
# store_float16: true        # models of half the size
# trackers: [tensorboard]    # or wandb
# tracker_project: masklet
"""


def template(data: DataLocation) -> str:
    """The text of a YAML file for a run on ``data``."""
    annotations = "" if data.annotations is None else f"  annotations: {json.dumps(str(data.annotations))}\n"
    stage = CLIPS if data.layout in VIDEO_LAYOUTS else IMAGES
    return TEMPLATE.format(
        layout=data.layout, path=json.dumps(str(data.path), ensure_ascii=False), annotations=annotations, stage=stage
    )
