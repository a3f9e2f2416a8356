"""Videos from the file to masks in host memory, on a GPU: for ``gpu.py``."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_networks import Pair

from masklet.engine import CudaEngine
from masklet.processing import ImageProcessor
from masklet.video.session import VideoSession

VIDEO_HW = (480, 854)
THEIR_SECONDS = 8.0
"""Limit of one video with transformers."""
FILLING = 24
"""Frames in which memory fills up and graphs are captured."""


def write_video(path: Path, frames: int) -> None:
    """A noisy image that moves sideways, as H.264."""
    import av

    height, width = VIDEO_HW
    wide = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8 + frames, 3), dtype=np.uint8)
    big = wide.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            image = np.ascontiguousarray(big[:, 4 * number : 4 * number + width])
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        file.mux(stream.encode())


def video_speed(pair: Pair, objects: int, path: Path) -> dict[str, Any]:
    """Frames a second from the file to masks in host memory, once memory is full; and the time to the first frame."""
    start = time.perf_counter()
    video = prompted(pair, objects, path)
    tracking = video.track()
    next(tracking)
    first = time.perf_counter() - start
    times = frame_times(itertools.islice(tracking, FILLING))
    of_thread, of_process = time.thread_time(), time.process_time()
    times += frame_times(tracking)
    of_thread, of_process = time.thread_time() - of_thread, time.process_time() - of_process
    steady = max(len(times) - FILLING, 1)
    result: dict[str, Any] = {"cuda": summary(times), "first_frame_s": round(first, 3)}
    result["calling_thread_ms"] = round(1000 * of_thread / steady, 3)
    result["all_threads_ms"] = round(1000 * of_process / steady, 3)
    result["graphs"] = len(video.engine._runner)
    if pair.their_video is not None:
        with torch.inference_mode(), pair.autocast():
            frames = their_frames(pair, points_of(objects), path)
            result["transformers"] = summary(frame_times(frames, THEIR_SECONDS))
        ours, theirs = result["cuda"].get("frames_per_second"), result["transformers"].get("frames_per_second")
        result["ratio"] = round(ours / theirs, 2) if ours and theirs else None
    return result


def points_of(objects: int) -> list[list[float]]:
    """A click for each object, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(objects, 2, generator=generator) * torch.tensor([VIDEO_HW[1], VIDEO_HW[0]])).tolist()


def prompted(pair: Pair, objects: int, path: Path) -> VideoSession:
    """A session of an engine that has captured nothing yet."""
    from masklet.segmenter import Segmenter

    segmenter = Segmenter(CudaEngine(pair.model, torch.bfloat16), ImageProcessor(pair.model.config.image_size))
    video = segmenter.video(path)
    for number, (x, y) in enumerate(points_of(objects)):
        video.prompt(0, number, points=[(x, y)])
    return video


def frame_times(frames: Iterator[object], most: float = 30.0) -> list[float]:
    """The time of each frame, of as many as there is time for."""
    times: list[float] = []
    start = time.perf_counter()
    for _ in frames:
        times.append(time.perf_counter() - start)
        if sum(times) > most:
            break
        start = time.perf_counter()
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Of the frames after memory was filled and graphs were captured."""
    steady = times[FILLING:] or times[len(times) // 2 :]
    return {
        "frames": len(steady),
        "frames_per_second": round(len(steady) / sum(steady), 2),
        "median_ms": round(1000 * statistics.median(steady), 3),
        "max_ms": round(1000 * max(steady), 3),
        "filling_s": round(sum(times[: len(times) - len(steady)]), 3),
    }


def their_frames(pair: Pair, points: list[list[float]], path: Path) -> Iterator[np.ndarray]:
    """Masks of each frame by transformers. Frames are read and resized as ours are, in the same thread as the rest."""
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    from masklet.video.frames import open_video

    side = pair.model.config.image_size
    processor = ImageProcessor(side)
    session = Sam2VideoInferenceSession(
        video_height=VIDEO_HW[0],
        video_width=VIDEO_HW[1],
        dtype=torch.float32,
        inference_device=pair.model.device,
        inference_state_device=pair.model.device,
        video_storage_device=pair.model.device,
    )
    for number, (x, y) in enumerate(points):
        place = torch.tensor([x * side / VIDEO_HW[1], y * side / VIDEO_HW[0]]).view(1, 1, 1, 2)
        labels = torch.ones(1, 1, 1, dtype=torch.int32)
        prompt = {"point_coords": place.to(pair.model.device), "point_labels": labels.to(pair.model.device)}
        session.add_point_inputs(session.obj_id_to_idx(number), 0, prompt)
        session.obj_with_new_inputs.append(number)
    for frame in open_video(path).frames():
        pixels = processor.frame_values(frame.image).to(pair.model.device)
        masks = pair.their_video(inference_session=session, frame=pixels).pred_masks
        large = torch.nn.functional.interpolate(masks.float(), VIDEO_HW, mode="bilinear", align_corners=False)
        yield (large > 0).cpu().numpy()
