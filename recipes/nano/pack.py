"""Packs the archives of the embedded model into one file that is small enough to carry to a machine with a GPU.

    python -m recipes.nano.pack DATA nano-data.zip [--limit-mib 45]

Images are scaled down and stored as WebP, and the parts of cut-outs are found and stored, so that training need not
search for them. ``gpu.sh`` unpacks the file; ``read_sources`` reads what is in it like the originals.
"""

from __future__ import annotations

import argparse
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from masklet.atomic import replacing
from masklet.errors import DataError
from recipes.nano.object_parts import parts_of
from recipes.nano.sources import PARTS, cutout_of

MIB = 2**20
SIDES_PX = {"instances": 512, "photos": 416, "cutouts": 192}
"""Longest side at first; all are scaled down together until the file is small enough."""
QUALITY = {"instances": 80, "photos": 65, "cutouts": 70}
SMALLEST_SCALE = 0.3
SAMPLED = 20
"""One image of so many is made smaller to find the scale."""
ROOM = 0.97
"""Share of the limit that is aimed at, since sizes do not follow areas exactly."""


def main() -> None:
    """Packs."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.nano.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="FILE.zip")
    parser.add_argument("--limit-mib", type=float, default=45.0)
    arguments = parser.parse_args()
    size, scale = pack(arguments.data, arguments.out, limit_mib=arguments.limit_mib)
    print(f"{arguments.out}: {size / MIB:.1f} MiB at {scale:.2f} of the largest sides")


def pack(data: Path, out: Path, *, limit_mib: float) -> tuple[int, float]:
    """Writes the file; returns its size in bytes and the scale of its images.

    Args:
        data: Folder of the archives.
        out: The file.
        limit_mib: Its largest size.

    Raises:
        DataError: There are no archives, or they do not fit however small their images are.
    """
    archives = [path for kind in SIDES_PX for path in sorted(data.glob(f"{kind}-*.zip"))]
    if not archives:
        raise DataError(f"no archives in {data}: expected cutouts-*.zip, photos-*.zip and instances-*.zip")
    scale = _first_scale(archives, limit_mib)
    while scale >= SMALLEST_SCALE:
        packed = {path.name: _smaller(path, scale) for path in archives}
        size = sum(map(len, packed.values()))
        if size <= limit_mib * MIB - 1000 * len(packed):  # names and tables
            with replacing(out) as unfinished, zipfile.ZipFile(unfinished, "w") as file:
                for name, content in packed.items():
                    file.writestr(zipfile.ZipInfo(name), content)
            return out.stat().st_size, scale
        scale *= ROOM * (limit_mib * MIB / size) ** 0.5
    raise DataError(f"the archives in {data} do not fit into {limit_mib} MiB: leave some of them out")


def _first_scale(archives: list[Path], limit_mib: float) -> float:
    """A scale at which the file probably fits, from a sample: making all images smaller takes minutes."""
    scale = 1.0
    for _ in range(3):
        size = sum(SAMPLED * len(_smaller(path, scale, every=SAMPLED)) for path in archives)
        if size > limit_mib * MIB:
            scale *= ROOM * (limit_mib * MIB / size) ** 0.5
    return scale


def _smaller(archive: Path, scale: float, *, every: int = 1) -> bytes:
    """An archive with smaller images: all of them, or one of so many, with its mask."""
    kind = archive.name.split("-")[0]
    side_px = max(32, round(SIDES_PX[kind] * scale))
    file = io.BytesIO()
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for name in sorted(source.namelist()):
            is_chosen = every == 1 or zlib.crc32(Path(name).stem.encode()) % every == 0
            if is_chosen and not name.endswith("/") and not name.startswith(PARTS):
                for entry, content in _entries(kind, name, source.read(name), side_px):
                    target.writestr(zipfile.ZipInfo(entry), content)
    return file.getvalue()


def _entries(kind: str, name: str, content: bytes, side_px: int) -> Iterator[tuple[str, bytes]]:
    image: Image.Image = Image.open(io.BytesIO(content))
    stem = str(Path(name).with_suffix(""))
    if name.startswith("masks/"):
        # Numbers, not colours: a palette and pixels that are interpolated would change them.
        labels = Image.fromarray(np.asarray(image))
        yield name, _encoded(labels.resize(_size(labels, side_px), Image.Resampling.NEAREST), "PNG", optimize=True)
        return
    image = image.convert("RGBA" if kind == "cutouts" else "RGB")
    image = image.resize(_size(image, side_px), Image.Resampling.LANCZOS)
    smaller = _encoded(image, "WEBP", quality=QUALITY[kind], method=4)
    yield f"{stem}.webp", smaller
    if kind == "cutouts":
        yield f"{PARTS}{stem}.png", _encoded(Image.fromarray(parts_of(cutout_of(smaller))), "PNG", optimize=True)


def _size(image: Image.Image, side_px: int) -> tuple[int, int]:
    shrink = min(1.0, side_px / max(image.size))
    return max(1, round(image.width * shrink)), max(1, round(image.height * shrink))


def _encoded(image: Image.Image, kind: str, **options: int | bool) -> bytes:
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


if __name__ == "__main__":
    main()
