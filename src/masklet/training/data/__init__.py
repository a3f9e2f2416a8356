"""Readers of annotated data sets, one for each layout; each returns ``Scene`` objects (see ``scenes``)."""

from __future__ import annotations

from pathlib import Path

from masklet.errors import DataError
from masklet.training.config import DataConfig
from masklet.training.data.coco import read_coco, read_sa1b
from masklet.training.data.folder import read_folder
from masklet.training.data.scenes import Scene
from masklet.training.data.videos import read_sav, read_videos


def read_scenes(data: DataConfig) -> list[Scene]:
    """All images or videos of a data set.

    Raises:
        DataError: The data do not have the layout, or some of their files are missing.
    """
    path = Path(data.path)
    match data.layout:
        case "folder":
            scenes = read_folder(path, split_masks=data.split_masks)
        case "coco":
            assert data.annotations is not None
            scenes = read_coco(path, Path(data.annotations))
        case "sa1b":
            scenes = read_sa1b(path)
        case "videos":
            scenes = read_videos(path)
        case _:
            assert data.layout == "sav"
            scenes = read_sav(path)
    missing = [file for scene in scenes for file in scene.files if not file.exists()]
    if missing:
        raise DataError(f"{len(missing)} files of the data are missing: {', '.join(map(str, missing[:3]))}")
    return scenes
