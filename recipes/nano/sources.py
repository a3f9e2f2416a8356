"""The material of synthetic images: cut-outs, images, and images with instance masks, decoded once into memory."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from masklet.datasets.scenes import Pixels
from masklet.errors import DataError
from recipes.nano.object_parts import parts_of

S = TypeVar("S")
T = TypeVar("T")

# The archives of the embedded model, in order; archives of other names follow them.
CUTOUT_ARCHIVES = ("openclipart", "fluent3d", "notoemoji", "kenney3d", "coco-photo")
IMAGE_ARCHIVES = ("photos-coco-ccby", "photos-misc")
INSTANCE_ARCHIVES = ("instances-coco-ccby", "instances-dsb2018-cc0", "instances-facade-ccby", "instances-misc-ccby")
MAX_SIDE_PX = 640
"""Images are shrunk to this size: crops of them fill inputs of about 512 pixels."""
COCO_REPEATS = 3
"""How much more often annotated images of COCO are used than annotated microscopy."""
COCO_CUTOUT_REPEATS = 4
"""How much more often cut-outs of images are used in training than drawn and rendered ones."""
VOID = 255
"""Label of pixels that are not annotated."""
PARTS = "parts/"
"""Folder of an archive of cut-outs with the parts of each, see ``parts_of``."""
NEIGHBOURS = 10
"""Photos with neighbouring numbers that count as one subject: series of a building, a tray or a desk."""
HELD_OUT_EVERY = 20
"""One of this many groups of sources is held out for validation."""
SERIES_HELD_OUT_EVERY = 8
"""The same for series of photos, of which there are few."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The decoded material."""

    cutouts: list[Image.Image]
    """RGBA."""
    images: list[Image.Image]
    """RGB, without masks."""
    instances: list[tuple[Image.Image, Image.Image]]
    """An RGB image and its label map of the same size: 0 for background, 1..k for instances, 255 for unknown."""
    instance_names: list[str] = field(default_factory=list)
    """Names of ``instances`` in their archives."""
    _parts: dict[int, bytes] = field(default_factory=dict, repr=False, compare=False)
    """Parts of cut-outs as PNG files, by identity: finding them takes longer than all other work on a cut-out. An
    archive may hold them."""

    def parts_of_cutout(self, index: int) -> Pixels:
        """(height, width), see ``parts_of``. Found once for each cut-out, even if it is listed several times."""
        cutout = self.cutouts[index]
        if (packed := self._parts.get(id(cutout))) is None:
            Image.fromarray(parts_of(cutout)).save(file := io.BytesIO(), "PNG", compress_level=1)
            packed = self._parts[id(cutout)] = file.getvalue()
        return np.asarray(Image.open(io.BytesIO(packed)))


def read_sources(folder: Path, *, held_out: bool) -> Sources:
    """Decodes the sources for training, or those for validation, from a folder of archives.

    Args:
        folder: Holds archives ``cutouts-*.zip``, ``photos-*.zip`` and ``instances-*.zip``, as made by ``pack_sources``.
        held_out: Take the sources for validation instead of those for training.

    Raises:
        DataError: An archive is missing, or there are no sources of some kind.
    """
    cutouts: list[Image.Image] = []
    packed_parts: dict[int, bytes] = {}
    for archive in _archives(folder, "cutouts", [f"cutouts-{name}" for name in CUTOUT_ARCHIVES]):
        repeats = COCO_CUTOUT_REPEATS if archive.stem == "cutouts-coco-photo" and not held_out else 1
        files = dict(_read(archive, held_out))
        parts = {name.removeprefix(PARTS): files.pop(name) for name in [n for n in files if n.startswith(PARTS)]}
        for name, cutout in zip(files, _decoded(cutout_of, files.values()), strict=True):
            cutouts += [cutout] * repeats
            stored = parts.get(f"{Path(name).with_suffix('')}.png")
            if stored is not None and Image.open(io.BytesIO(stored)).size == cutout.size:
                packed_parts[id(cutout)] = stored
    archives = _archives(folder, "photos", IMAGE_ARCHIVES)
    images = _decoded(_image, [data for archive in archives for _, data in _read(archive, held_out)])
    instances: list[tuple[Image.Image, Image.Image]] = []
    names: list[str] = []
    for archive in _archives(folder, "instances", INSTANCE_ARCHIVES):
        files = dict(_read(archive, held_out))
        annotated = sorted(name for name in files if name.startswith("images/"))
        pairs = _decoded(_annotated, [(files[name], files[f"masks/{Path(name).stem}.png"]) for name in annotated])
        repeats = COCO_REPEATS if "coco" in archive.stem else 1
        for name, pair in zip(annotated, pairs, strict=True):
            instances += [pair] * repeats
            names += [name] * repeats
    sources = Sources(cutouts, images, instances, names, packed_parts)
    for kind, found in (("cutouts", cutouts), ("photos", images), ("instances", instances)):
        if not found:
            purpose = "validation" if held_out else "training"
            raise DataError(f"the archives {kind}-*.zip in {folder} hold nothing for {purpose}: expected more files")
    return sources


def _archives(folder: Path, kind: str, known: Sequence[str]) -> list[Path]:
    """The archives of a kind: the ``known`` ones, all or none, in an order that images depend on; then any others."""
    found = sorted(folder.glob(f"{kind}-*.zip"))
    ours = [folder / f"{name}.zip" for name in known]
    if not found:
        raise DataError(f"no {kind}-*.zip in {folder}: expected archives made by recipes.nano.pack_sources")
    if (there := [path for path in ours if path in found]) and (
        missing := [path for path in ours if path not in found]
    ):
        raise DataError(f"{missing[0]} is missing beside {there[0].name}: expected all archives of the embedded model")
    return [*there, *(path for path in found if path not in ours)]


def is_held_out(name: str) -> bool:
    """Whether a file of an archive is for validation. Files of one group, see ``source_group``, stay together."""
    group = source_group(name)
    return zlib.crc32(group.encode()) % (SERIES_HELD_OUT_EVERY if " series " in group else HELD_OUT_EVERY) == 0


def source_group(name: str) -> str:
    """The subject of a file: the image it was cut from, the 3D model it renders, the first code point of an emoji, or
    the series that a photo belongs to.

    Without groups, a cut-out could be held out while training uses its image, other views of it, or the same emoji in
    another skin tone or font.
    """
    path = Path(name)
    if coco := re.search(r"coco_(\d+)", path.name):
        return f"coco {int(coco[1])}"
    if series := re.match(r"(plants|mushroom|treelimb|oi)_(?:[a-z]+_)?(\d+)_", path.name):
        return f"{series[1]} series {int(series[2]) // NEIGHBOURS}"
    if photo := re.search(r"(micro|facade)_\d+_.*?(?:(\d{8}_\d{3})\d{3}|IMG_(\d{1,5})(?!\d))", path.name):
        return f"{photo[1]} series {photo[2] or int(photo[3]) // NEIGHBOURS}"
    if emoji := re.match(r"(?:emoji_)?u?0*([0-9a-f]{2,6})(?:[-_]|$)", path.stem):
        return f"emoji {emoji[1]}"
    return path.parent.name if path.stem.isdigit() else path.stem


def _read(archive: Path, held_out: bool) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as files:
        for name in sorted(files.namelist()):
            if not name.endswith("/") and is_held_out(name) == held_out:
                yield name, files.read(name)


def cutout_of(data: bytes) -> Image.Image:
    """An RGBA cut-out without the transparent margin."""
    cutout = Image.open(io.BytesIO(data)).convert("RGBA")
    return cutout.crop(cutout.getchannel("A").getbbox())


def _decoded(decode: Callable[[T], S], files: Iterable[T]) -> list[S]:
    """The decoded files in order. Decoders leave Python's lock to others, so threads share the work."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(decode, files))


def _annotated(files: tuple[bytes, bytes]) -> tuple[Image.Image, Image.Image]:
    image = _image(files[0])
    return image, Image.open(io.BytesIO(files[1])).resize(image.size, Image.Resampling.NEAREST)


def _image(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    return image
