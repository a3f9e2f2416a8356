"""Whole files of every kind that masklet reads, and what reads them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
import torch
from PIL import Image

import masklet
from masklet.batch.inputs import find_inputs
from masklet.batch.prompt_files import read_prompt_file
from masklet.checkpoints.meta import read_meta_file
from masklet.datasets import read_scenes
from masklet.image import EncodedImage
from masklet.images.reading import read_image
from masklet.images.windows import open_windows
from masklet.results import Masks
from masklet.segmenter import Segmenter
from masklet.video.frames import open_video
from soak.network import moving_rectangles, tiny_segmenter

FRAMES, SIZE_HW = 6, (48, 80)


@dataclass(frozen=True)
class Original:
    """A whole file, and what reads it or the folder that it is part of."""

    path: Path
    read: Callable[[], object]


def images(folder: Path) -> list[Original]:
    """Files of Pillow's and tifffile's formats, read whole and in windows."""
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE_HW, 3), dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"image.{suffix}" for suffix in ("png", "jpg", "webp", "gif", "bmp", "ppm")]
    for path in paths:
        Image.fromarray(pixels).save(path)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(folder / "deep.png")
    tiffs = [folder / "tiled.tif", folder / "float.tif"]
    tifffile.imwrite(tiffs[0], pixels, tile=(16, 16), compression="zlib", photometric="rgb")
    tifffile.imwrite(tiffs[1], pixels.astype(np.float32), planarconfig="contig", photometric="rgb")
    whole = [Original(path, partial(read_image, path)) for path in [*paths, folder / "deep.png", *tiffs]]
    return whole + [Original(path, partial(_read_windows, path)) for path in tiffs]


def _read_windows(path: Path) -> None:
    windows = open_windows(path)
    assert windows[:16, :16].shape[-1] == 3


def videos(folder: Path) -> list[Original]:
    """Files of several containers and codecs, and animated images."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {"mp4": "libx264", "mkv": "mpeg4", "avi": "mjpeg", "webm": "libvpx", "ts": "mpeg2video", "mov": "libx264"}
    paths = [folder / f"clip.{suffix}" for suffix in kinds]
    for path in paths:
        _write_video(path, kinds[path.suffix[1:]])
    first, *others = map(Image.fromarray, moving_rectangles(FRAMES))
    for suffix in ("gif", "webp"):
        paths.append(folder / f"clip.{suffix}")
        first.save(paths[-1], save_all=True, append_images=others)
    return [Original(path, partial(_read_video, path)) for path in paths]


def _write_video(path: Path, codec: str) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.height, stream.width = SIZE_HW
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for image in moving_rectangles(4 * FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode(None))


def _read_video(path: Path) -> None:
    video = open_video(path)
    for frame in islice(video, 50):
        assert np.isfinite(frame.time)
    if video.count:
        video[video.count - 1]


def sessions(folder: Path) -> list[Original]:
    """A saved session as a file, and its header and tensors, which are packed again before they are read."""
    folder.mkdir(parents=True, exist_ok=True)
    sam, clip = tiny_segmenter(), folder / "clip"
    clip.mkdir(exist_ok=True)
    for index, image in enumerate(moving_rectangles(FRAMES)):
        Image.fromarray(image).save(clip / f"{index}.png")
    session = sam.video(clip)
    session.prompt(1, "cup", points=[(40, 25)])
    session.prompt(0, 7, mask=np.tri(*SIZE_HW, dtype=bool), points=[(5, 30)])
    list(islice(session.track(), FRAMES - 2))
    session.save(folder / "whole.session")
    with zipfile.ZipFile(folder / "whole.session") as archive:
        archive.extractall(folder / "parts")
    parts = sorted(path for path in (folder / "parts").rglob("*") if path.is_file())
    packed = [Original(path, partial(_read_parts, sam, folder / "packed.session", folder / "parts")) for path in parts]
    return [Original(folder / "whole.session", partial(_track_on, sam, folder / "whole.session")), *packed]


def _read_parts(sam: Segmenter, path: Path, parts: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for part in sorted(parts.rglob("*")):
            if part.is_file():
                archive.write(part, part.relative_to(parts))
    _track_on(sam, path)


def _track_on(sam: Segmenter, path: Path) -> None:
    session = sam.resume(path)
    for result in islice(session.resume_tracking(), 3):
        assert np.isfinite(result.iou_scores).all()


def embeddings(folder: Path) -> list[Original]:
    """An encoded image."""
    folder.mkdir(parents=True, exist_ok=True)
    sam, path = tiny_segmenter(), folder / "image.safetensors"
    sam.image(moving_rectangles(1)[0]).save(path)
    return [Original(path, partial(_load_embedding, sam, path))]


def _load_embedding(sam: Segmenter, path: Path) -> None:
    image = EncodedImage.load(sam.engine, path)
    if max(image.size_hw) < 1000:
        assert np.isfinite(image.predict(points=[(0, 0)]).iou_scores).all()


def checkpoints(folder: Path) -> list[Original]:
    """The files of a model folder, and a checkpoint as Meta saves them."""
    tiny_segmenter().model.save_pretrained(folder / "model")
    files = sorted((folder / "model").iterdir())
    meta = folder / "meta.pt"
    torch.save({"model": {"image_encoder.trunk.pos_embed": torch.ones(1, 96, 7, 7)}}, meta)
    reading = [Original(path, partial(_load_and_predict, folder / "model")) for path in files]
    return [*reading, Original(meta, partial(read_meta_file, meta))]


def _load_and_predict(folder: Path) -> None:
    sam = masklet.load(folder, device="cpu")
    if max(sam.image_processor.input_hw) <= 256:
        sam.image(np.zeros((20, 30, 3), np.uint8)).predict(points=[(5, 6)])


def coco(folder: Path) -> list[Original]:
    """A data set, read for training, as prompts and as masks."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(moving_rectangles(1)[0]).save(folder / "a.png")
    path, squares = folder / "instances.json", [[10, 10, 40, 10, 40, 40, 10, 40]]
    runs = {"size": list(SIZE_HW), "counts": [100, 30, SIZE_HW[0] * SIZE_HW[1] - 130]}
    of_image = {"image_id": 3, "category_id": 1, "iscrowd": 0}
    document = {
        "images": [{"id": 3, "file_name": "a.png", "height": SIZE_HW[0], "width": SIZE_HW[1]}],
        "annotations": [
            {"id": 1, "segmentation": squares, "bbox": [10, 10, 30, 30], "area": 900, **of_image},
            {"id": 2, "segmentation": runs, "bbox": [2, 4, 1, 30], "area": 30, **of_image},
        ],
        "categories": [{"id": 1, "name": "object"}],
    }
    path.write_text(json.dumps(document))
    readers: list[Callable[[], object]] = [
        partial(_read_coco, folder, path),
        partial(read_prompt_file, str(path)),
        partial(_masks_of_coco, path),
    ]
    return [Original(path, read) for read in readers]


def _read_coco(folder: Path, path: Path) -> None:
    for scene in read_scenes("coco", folder, annotations=path):
        frame = scene.frame(0)
        for number in frame.masks:
            frame.mask(number)


def _masks_of_coco(path: Path) -> None:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):  # the caller reads the file
        return
    Masks.from_coco(document, size_hw=SIZE_HW)


def parquet(folder: Path) -> list[Original]:
    """Prompts in tables and lists of inputs."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"image": "a.jpg", "object": "cup", "x": 10.0, "y": 20.5, "label": 1},
        {"image": "a.jpg", "object": "lid", "x": 30.0, "y": 40.0, "label": 0},
    ]
    boxes = [{"image": f"{number}.jpg", "box": [1.0, 2.0, 30.0, 40.0 + number]} for number in range(50)]
    tables = {"points.parquet": rows, "boxes.parquet": boxes}
    for name, table in tables.items():
        pq.write_table(pa.Table.from_pylist(table), folder / name)
    texts = {"points.json": json.dumps(rows), "points.jsonl": "\n".join(map(json.dumps, rows))}
    texts["points.csv"] = "image,object,x,y\na.jpg,cup,10,20.5\n"
    for name, text in texts.items():
        (folder / name).write_text(text)
    prompts = [Original(folder / name, partial(read_prompt_file, str(folder / name))) for name in [*tables, *texts]]
    listed = folder / "boxes.parquet"
    return [*prompts, Original(listed, partial(find_inputs, str(listed), [".jpg"]))]


def onnx(folder: Path) -> list[Original]:
    """An exported folder. Exporting takes a minute, so it is done once."""
    from masklet.export import to_onnx

    if not folder.exists():
        to_onnx(tiny_segmenter("eager"), folder)
    return [Original(path, partial(_predict_with_onnx, folder)) for path in sorted(folder.iterdir())]


def _predict_with_onnx(folder: Path) -> None:
    sam = masklet.load(folder, engine="onnx", threads=1)
    sam.image(np.zeros((20, 30, 3), np.uint8)).predict(points=[(5, 6)])


READERS: dict[str, Callable[[Path], list[Original]]] = {
    "images": images,
    "videos": videos,
    "sessions": sessions,
    "embeddings": embeddings,
    "checkpoints": checkpoints,
    "coco": coco,
    "parquet": parquet,
    "onnx": onnx,
}
