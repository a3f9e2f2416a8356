"""Prompts and options, most of them valid, and the calls that take them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from damage import ODD_VALUES, places_of

from masklet.compat import transformers as dropin
from masklet.compat.sam2.network import SAM2Base
from masklet.compat.sam2.sam2_image_predictor import SAM2ImagePredictor
from masklet.compat.sam2.sam2_video_predictor import SAM2VideoPredictor
from soak.network import moving_rectangles, tiny_segmenter

HEIGHT, WIDTH = 48, 80
FRAMES = 5
OBJECTS = (1, 1, 1, 2, 3, 8, 32, 100)
POINTS = (1, 1, 2, 3, 8, 20)
SPOILED = 0.3


class Case:
    """The random choices of one call.

    Attributes:
        prompts: How many points, boxes and masks were given.
        given: The arguments of the call, to be reported.
    """

    def __init__(self, source: random.Random) -> None:
        self.random, self.prompts, self.given = source, 0, {}

    def chance(self, share: float) -> bool:
        """True in this share of cases."""
        return self.random.random() < share

    def choice(self, *values: Any) -> Any:
        """One of the values."""
        return self.random.choice(values)

    def points(self, *leading: int) -> list[Any]:
        """Nested lists of (x, y), some of them on or beyond the border."""
        if leading:
            return [self.points(*leading[1:]) for _ in range(leading[0])]
        self.prompts += 1
        beyond = 20 * self.chance(0.02)
        x = self.random.uniform(-beyond, WIDTH + beyond)
        return [self.choice(0, WIDTH, round(x), x, x, x), self.random.uniform(-beyond, HEIGHT + beyond)]

    def labels(self, *leading: int) -> Any:
        """Nested lists of labels."""
        if leading:
            return [self.labels(*leading[1:]) for _ in range(leading[0])]
        return self.choice(0, 1, 1)

    def boxes(self, *leading: int) -> list[Any]:
        """Nested lists of (x0, y0, x1, y1)."""
        if leading:
            return [self.boxes(*leading[1:]) for _ in range(leading[0])]
        self.prompts += 1
        x0, x1 = sorted((self.random.uniform(0, WIDTH), self.random.uniform(0, WIDTH)))
        y0, y1 = sorted((self.random.uniform(0, HEIGHT), self.random.uniform(0, HEIGHT)))
        return [x0, y0, x1 + 1, y1 + 1]

    def mask(self, *leading: int, size_hw: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
        """(*leading, height, width): booleans, soft masks, grey values or logits."""
        self.prompts += int(np.prod(leading, dtype=int))
        values = np.random.default_rng(self.random.getrandbits(32)).random((*leading, *size_hw), np.float32)
        kinds: list[Callable[[], np.ndarray]] = [
            lambda: values > 0.5,
            lambda: values,
            lambda: (255 * values).astype(np.uint8),
            lambda: 20 * values - 10,
        ]
        return self.random.choice(kinds)()

    def as_given(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Lists as arrays or tensors in some cases, and odd values in place of some."""
        arguments = {name: value for name, value in arguments.items() if value is not None}
        if self.chance(SPOILED):
            flags = {name for name, value in arguments.items() if isinstance(value, bool)}
            for _ in range(self.random.randint(1, 2)):
                holder, key = self.random.choice(list(places_of(arguments)))
                # Python itself refuses an array where a flag is expected.
                arrays = [] if key in flags else [np.zeros(0), np.full((2, 3), np.nan)]
                holder[key] = copy.deepcopy(self.random.choice([*ODD_VALUES, *arrays]))
        else:
            kinds = [np.array, lambda value: torch.tensor(np.array(value))]
            for name, value in arguments.items():
                if isinstance(value, list) and self.chance(0.3):
                    arguments[name] = self.random.choice(kinds)(value)
        self.given = arguments
        return arguments


class Target:
    """Something that is attacked."""

    name = ""

    def begin(self) -> None:
        """Starts again, if it has a state."""

    def attack(self, case: Case) -> None:
        """One call with fuzzed arguments.

        Raises:
            AssertionError: Its result is invalid.
        """
        raise NotImplementedError


def check_scores(*scores: Any) -> None:
    """All are finite."""
    for values in scores:
        assert np.isfinite(np.asarray(values)).all(), "scores are not finite"


class Images(Target):
    """``EncodedImage.predict``."""

    name = "images"

    def __init__(self) -> None:
        self.image = tiny_segmenter().image(moving_rectangles(1)[0])

    def attack(self, case: Case) -> None:
        """Any prompt, with any options."""
        objects, points = case.choice(*OBJECTS), case.choice(*POINTS)
        kind, is_single = case.choice("points", "points", "boxes", "both", "mask"), objects == 1
        has_points = kind in ("points", "both") or case.chance(0.3)
        leading = (points,) if is_single and case.chance(0.8) else (objects, points)
        box = case.boxes(*(() if is_single else (objects,))) if kind in ("boxes", "both") else None
        candidates = case.chance(0.2)
        arguments = {
            "points": case.points(*leading) if has_points else None,
            "labels": case.labels(*leading) if has_points and case.chance(0.5) else None,
            "box" if is_single else "boxes": box,
            "mask": case.mask(objects) if kind == "mask" else None,
            "multimask": case.choice(None, None, True, False),
            "candidates": candidates,
            "packed": False if candidates else case.chance(0.2),
            "fill_holes": case.choice(0, 0, 0, 5),
            "remove_islands": case.choice(0, 0, 0, 5),
        }
        masks = self.image.predict(**case.as_given(arguments))
        assert np.asarray(masks.masks).shape[-2:] == (HEIGHT, WIDTH)
        check_scores(masks.iou_scores)


class Videos(Target):
    """``VideoSession``: prompts, corrections, removals and tracking."""

    name = "videos"

    def __init__(self) -> None:
        self.sam, self.frames = tiny_segmenter(), moving_rectangles(FRAMES)

    def begin(self) -> None:
        """Opens the video again."""
        self.session = self.sam.video(self.frames)

    def attack(self, case: Case) -> None:
        """A step of a session."""
        if case.chance(0.1):
            arguments = {
                "start": case.choice(None, 0, 2, FRAMES - 1),
                "direction": case.choice("forward", "backward", "both"),
                "every": case.choice(1, 1, 2),
            }
            for result in islice(self.session.track(**case.as_given(arguments)), 4):
                check_scores(result.iou_scores, result.object_scores, result.time)
        elif case.chance(0.05):
            self.session.remove(**case.as_given({"object": case.random.randrange(4), "frame": case.choice(None, 0)}))
        else:
            frame = {"frame": case.random.randrange(FRAMES), "object": case.random.randrange(4)}
            check_scores(self.session.prompt(**case.as_given(frame | one_object(case))).iou_scores)


def one_object(case: Case) -> dict[str, Any]:
    """The prompt of one object."""
    points, kind = case.choice(*POINTS), case.choice("points", "points", "box", "both", "mask")
    has_points = kind in ("points", "both")
    return {
        "points": case.points(points) if has_points else None,
        "labels": case.labels(points) if has_points and case.chance(0.5) else None,
        "box": case.boxes() if kind in ("box", "both") else None,
        "mask": case.mask() if kind == "mask" else None,
    }


class Streams(Target):
    """``VideoStream``."""

    name = "streams"

    def __init__(self) -> None:
        self.sam, self.frames = tiny_segmenter(), moving_rectangles(FRAMES)

    def begin(self) -> None:
        """A new stream."""
        self.stream = self.sam.stream()

    def attack(self, case: Case) -> None:
        """Pushes a frame, or corrects an object in the last one."""
        if case.chance(0.4) and self.stream.count:
            result = self.stream.correct(case.random.randrange(3), **case.as_given(one_object(case)))
        else:
            objects = {number: one_object(case) for number in range(case.choice(0, 0, 1, 2))}
            prompts = {number: case.as_given(prompt) for number, prompt in objects.items()}
            result = self.stream.push(self.frames[case.random.randrange(FRAMES)], prompts)
        check_scores(result.iou_scores, result.object_scores)


class TransformersImages(Target):
    """``Sam2Processor`` and ``Sam2Model`` of transformers."""

    name = "transformers images"

    def __init__(self, folder: Path) -> None:
        self.model = dropin.Sam2Model.from_pretrained(folder)
        self.processor = dropin.Sam2Processor.from_pretrained(folder)
        self.images = moving_rectangles(2)

    def attack(self, case: Case) -> None:
        """One or two images, with points or boxes."""
        images, objects, points = case.choice(1, 1, 2), case.choice(*OBJECTS), case.choice(*POINTS)
        has_points = case.chance(0.7)
        arguments = {
            "input_points": case.points(images, objects, points) if has_points else None,
            "input_labels": case.labels(images, objects, points) if has_points and case.chance(0.7) else None,
            "input_boxes": None if has_points else case.boxes(images, objects),
        }
        inputs = self.processor(self.images[:images], return_tensors="pt", **case.as_given(arguments))
        with torch.no_grad():
            outputs = self.model(**inputs, multimask_output=case.chance(0.7))
        masks = self.processor.post_process_masks(outputs.pred_masks, inputs["original_sizes"])
        assert all(one.shape[-2:] == (HEIGHT, WIDTH) for one in masks)
        check_scores(outputs.iou_scores)


class TransformersVideos(Target):
    """``Sam2VideoProcessor`` and ``Sam2VideoModel`` of transformers."""

    name = "transformers videos"

    def __init__(self, folder: Path) -> None:
        self.model = dropin.Sam2VideoModel.from_pretrained(folder)
        self.processor = dropin.Sam2VideoProcessor.from_pretrained(folder)
        self.frames = moving_rectangles(FRAMES)

    def begin(self) -> None:
        """A new session."""
        self.session = self.processor.init_video_session(video=self.frames)

    def attack(self, case: Case) -> None:
        """Prompts objects, and runs their frame or the whole video."""
        frame, objects, points = case.random.randrange(FRAMES), case.choice(1, 1, 2), case.choice(*POINTS)
        kind = case.choice("points", "points", "boxes", "masks")
        arguments = {
            "frame_idx": frame,
            "obj_ids": list(range(objects)),
            "input_points": case.points(1, objects, points) if kind == "points" else None,
            "input_labels": case.labels(1, objects, points) if kind == "points" else None,
            "input_boxes": case.boxes(1, objects) if kind == "boxes" else None,
            "input_masks": [case.mask() for _ in range(objects)] if kind == "masks" else None,
            "clear_old_inputs": kind != "points" or case.chance(0.5),
        }
        self.processor.add_inputs_to_inference_session(self.session, **case.as_given(arguments))
        outputs = [self.model(self.session, frame_idx=frame)]
        if case.chance(0.1):
            outputs += islice(self.model.propagate_in_video_iterator(self.session, reverse=case.chance(0.3)), 4)
        for output in outputs:
            check_scores(output.pred_masks, output.object_score_logits)


class MetaImages(Target):
    """Meta's ``SAM2ImagePredictor``."""

    name = "sam2 images"

    def __init__(self) -> None:
        sam = tiny_segmenter()
        self.predictor = SAM2ImagePredictor(SAM2Base(sam.model, sam.image_processor))
        self.predictor.set_image(moving_rectangles(1)[0])

    def attack(self, case: Case) -> None:
        """One object or several."""
        objects, points = case.choice(*OBJECTS), case.choice(*POINTS)
        leading = (points,) if objects == 1 else (objects, points)
        kind = case.choice("points", "points", "box", "both")
        has_points = kind != "box"
        arguments = {
            "point_coords": case.points(*leading) if has_points else None,
            "point_labels": case.labels(*leading) if has_points else None,
            "box": case.boxes(*leading[:-1]) if kind != "points" else None,
            "mask_input": case.mask(*leading[:-1], 1, size_hw=(16, 16)) if case.chance(0.1) else None,
            "multimask_output": case.chance(0.5),
            "return_logits": case.chance(0.2),
        }
        masks, iou_scores, logits = self.predictor.predict(**case.as_given(arguments))
        assert masks.shape[-2:] == (HEIGHT, WIDTH)
        check_scores(iou_scores, logits)


class MetaVideos(Target):
    """Meta's ``SAM2VideoPredictor``."""

    name = "sam2 videos"

    def __init__(self) -> None:
        sam = tiny_segmenter()
        self.predictor = SAM2VideoPredictor(sam.model, sam.image_processor)
        self.frames = moving_rectangles(FRAMES)

    def begin(self) -> None:
        """A new state."""
        self.state = self.predictor.init_state(self.frames)

    def attack(self, case: Case) -> None:
        """Prompts an object, removes one, or tracks."""
        number, frame = case.random.randrange(3), case.random.randrange(FRAMES)
        if case.chance(0.1):
            arguments = {"start_frame_idx": case.choice(None, frame), "reverse": case.chance(0.3)}
            for _, _, logits in islice(self.predictor.propagate_in_video(self.state, **case.as_given(arguments)), 4):
                check_scores(logits)
        elif case.chance(0.05):
            self.predictor.remove_object(self.state, number)
        else:
            prompt = one_object(case)
            prompt["labels"] = prompt["labels"] or (prompt["points"] and [1] * len(prompt["points"]))
            call = self.predictor.add_new_points_or_box
            if prompt["mask"] is not None:
                call, prompt = self.predictor.add_new_mask, {"mask": prompt["mask"]}
            arguments = {"frame_idx": frame, "obj_id": number, **prompt}
            check_scores(call(self.state, **case.as_given(arguments))[2])


def make_targets(folder: Path) -> list[Target]:
    """All of them; images twice as often."""
    tiny_segmenter().model.save_pretrained(folder)
    images = Images()
    dropins = [TransformersImages(folder), TransformersVideos(folder), MetaImages(), MetaVideos()]
    return [images, images, Videos(), Streams(), *dropins]
