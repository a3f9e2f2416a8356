"""What training images are made of: cut-outs, images, and images with instance masks, decoded once into memory."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from masklet.errors import DataError
from masklet.training.regions import parts_of
from masklet.training.worlds import Pixels

# The embedded model's; archives of other names follow them.
CUTOUT_ARCHIVES = ("openclipart", "fluent3d", "notoemoji", "kenney3d", "coco-photo")
IMAGE_ARCHIVES = ("photos-coco-ccby", "photos-misc")
INSTANCE_ARCHIVES = ("instances-coco-ccby", "instances-dsb2018-cc0")
MAX_SIDE_PX = 640
"""Images are kept no larger: crops of them fill inputs of about 512 pixels."""
IMAGE_REPEATS = 3
"""Annotated images are this many times as frequent as annotated microscopy."""
IMAGE_CUTOUT_REPEATS = 4
"""Cut-outs of images are this many times as frequent in training as drawn and rendered ones."""
HELD_OUT_EVERY = 20
"""One group of sources in so many is never trained on."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The material, decoded."""

    cutouts: list[Image.Image]
    """RGBA."""
    images: list[Image.Image]
    """RGB, without masks."""
    instances: list[tuple[Image.Image, Image.Image]]
    """RGB image and, of the same size, its L label map: 0 background, 1..k instances, 255 not known."""
    _parts: dict[int, bytes] = field(default_factory=dict, repr=False, compare=False)
    """Of cut-outs, packed: finding them takes longer than all else that is done with one."""

    def parts_of_cutout(self, index: int) -> Pixels:
        """(height, width): see ``parts_of``. Looked for once in each cut-out, however often it is listed."""
        cutout = self.cutouts[index]
        if (packed := self._parts.get(id(cutout))) is None:
            packed = self._parts[id(cutout)] = zlib.compress(parts_of(cutout).tobytes(), level=1)
        return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(cutout.height, cutout.width)


def read_sources(folder: Path, *, held_out: bool) -> Sources:
    """Decode one side of the split from a folder of archives, as ``examples/pack_sources.py`` makes them.

    Args:
        folder: Holds the ``cutouts-*.zip``, ``photos-*.zip`` and ``instances-*.zip`` archives.
        held_out: Take the sources kept for measuring instead of those for training.

    Raises:
        DataError: An archive is missing, or there is nothing for this side.
    """
    cutouts = []
    for archive in _archives(folder, "cutouts", [f"cutouts-{name}" for name in CUTOUT_ARCHIVES]):
        repeats = IMAGE_CUTOUT_REPEATS if archive.stem == "cutouts-coco-photo" and not held_out else 1
        cutouts += [_cutout(data) for _, data in _read(archive, held_out)] * repeats
    archives = _archives(folder, "photos", IMAGE_ARCHIVES)
    images = [_image(data) for archive in archives for _, data in _read(archive, held_out)]
    instances = []
    for archive in _archives(folder, "instances", INSTANCE_ARCHIVES):
        files = dict(_read(archive, held_out))
        for name in sorted(name for name in files if name.startswith("images/")):
            image = _image(files[name])
            labels = Image.open(io.BytesIO(files[f"masks/{Path(name).stem}.png"]))
            pair = (image, labels.resize(image.size, Image.Resampling.NEAREST))
            instances += [pair] * (IMAGE_REPEATS if "coco" in archive.stem else 1)
    sources = Sources(cutouts, images, instances)
    for kind in ("cutouts", "images", "instances"):
        if not getattr(sources, kind):
            side = "measuring" if held_out else "training"
            raise DataError(f"the archives {kind}-*.zip in {folder} hold nothing for {side}: expected more files")
    return sources


def _archives(folder: Path, kind: str, known: Sequence[str]) -> list[Path]:
    """Those of the embedded model, all or none, in their order, on which compositions depend; then any others."""
    found = sorted(folder.glob(f"{kind}-*.zip"))
    ours = [folder / f"{name}.zip" for name in known]
    if not found:
        raise DataError(f"no {kind}-*.zip in {folder}: expected archives as examples/pack_sources.py makes them")
    if (there := [path for path in ours if path in found]) and (
        missing := [path for path in ours if path not in found]
    ):
        raise DataError(f"{missing[0]} is missing beside {there[0].name}: expected all archives of the embedded model")
    return [*there, *(path for path in found if path not in ours)]


def is_held_out(name: str) -> bool:
    """Whether a file of an archive belongs to the measuring side; what shows the same thing goes together."""
    return zlib.crc32(source_group(name).encode()) % HELD_OUT_EVERY == 0


def source_group(name: str) -> str:
    """What a file shows: the image it was cut from, the 3D model it renders, the first code point of an emoji.

    Without this a cut-out could be held out while its image, its other views or its twin in another skin tone or emoji
    font are trained on.
    """
    path = Path(name)
    if coco := re.search(r"coco_(\d+)", path.name):
        return f"coco {int(coco[1])}"
    if emoji := re.match(r"(?:emoji_)?u?0*([0-9a-f]{2,6})(?:[-_]|$)", path.stem):
        return f"emoji {emoji[1]}"
    return path.parent.name if path.stem.isdigit() else path.stem


def _read(archive: Path, held_out: bool) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as files:
        for name in sorted(files.namelist()):
            if not name.endswith("/") and is_held_out(name) == held_out:
                yield name, files.read(name)


def _cutout(data: bytes) -> Image.Image:
    cutout = Image.open(io.BytesIO(data)).convert("RGBA")
    return cutout.crop(cutout.getchannel("A").getbbox())


def _image(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    return image
