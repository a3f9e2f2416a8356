"""Readers of annotated data sets, one for each layout; each returns ``Scene`` objects (see ``scenes``)."""

from __future__ import annotations

import os
from pathlib import Path

from masklet.datasets.coco import read_coco, read_sa1b
from masklet.datasets.folder import read_folder
from masklet.datasets.scenes import Scene
from masklet.errors import DataError

LAYOUTS = ("folder", "coco", "sa1b", "videos", "sav")
VIDEO_LAYOUTS = ("videos", "sav")


def read_scenes(
    layout: str,
    path: str | os.PathLike[str],
    *,
    annotations: str | os.PathLike[str] | None = None,
    split_masks: bool = False,
) -> list[Scene]:
    """All images or videos of a data set.

    Args:
        layout: One of ``LAYOUTS``.
        path: Folder of the images or videos.
        annotations: JSON file of the layout ``coco``.
        split_masks: Treat every connected component of a label as an object of its own, in the layout ``folder``.

    Raises:
        DataError: The data do not have the layout, or some of their files are missing.
    """
    path = Path(path)
    match layout:
        case "folder":
            scenes = read_folder(path, split_masks=split_masks)
        case "coco":
            assert annotations is not None
            scenes = read_coco(path, Path(annotations))
        case "sa1b":
            scenes = read_sa1b(path)
        case "videos":
            from masklet.datasets.videos import read_videos  # needs PyAV, which images do not

            scenes = read_videos(path)
        case _:
            assert layout == "sav"
            from masklet.datasets.videos import read_sav

            scenes = read_sav(path)
    missing = [file for scene in scenes for file in scene.files if not file.exists()]
    if missing:
        raise DataError(f"{len(missing)} files of the data are missing: {', '.join(map(str, missing[:3]))}")
    return scenes
