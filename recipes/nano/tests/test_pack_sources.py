"""Archives of your own: packed by a script, read for training."""

import sys

import numpy as np
import pytest
from PIL import Image

from masklet.errors import DataError
from recipes.nano import pack_sources
from recipes.nano.sources import read_sources


@pytest.fixture
def pack(monkeypatch):
    def pack(*arguments):
        monkeypatch.setattr(sys, "argv", ["pack_sources.py", *map(str, arguments)])
        pack_sources.main()

    return pack


@pytest.fixture
def material(tmp_path):
    """Sixty files of each kind, named by numbers, as cameras do."""
    for kind in ("cutouts", "photos", "instances/images", "instances/masks"):
        (tmp_path / kind).mkdir(parents=True)
    for index in range(60):
        cutout = Image.new("RGBA", (20, 20))
        cutout.paste("red", (5, 5, 15, 12))
        cutout.save(tmp_path / f"cutouts/{index:03}.png")
        image = Image.new("RGB", (60, 40), (index, 0, 0))
        image.save(tmp_path / f"photos/{index:03}.jpg")
        image.save(tmp_path / f"instances/images/{index:03}.jpg")
        labels = np.zeros((40, 60), np.uint8)
        labels[10:30, 10:40] = 255 if index % 2 else 3  # black and white, or a number
        Image.fromarray(labels).save(tmp_path / f"instances/masks/{index:03}.png")
    return tmp_path


def test_packed_archives_can_be_read_and_are_reproducible(pack, material):
    folders = [part for kind in ("cutouts", "photos", "instances") for part in (f"--{kind}", material / kind)]
    for data in ("one", "two"):
        pack(material / data, "mine", *folders)
    names = sorted(path.name for path in (material / "one").iterdir())
    assert names == ["cutouts-mine.zip", "instances-mine.zip", "photos-mine.zip"]
    assert all((material / "one" / n).read_bytes() == (material / "two" / n).read_bytes() for n in names)
    sides = [read_sources(material / "one", held_out=held_out) for held_out in (False, True)]
    for kind in ("cutouts", "images"):
        assert sum(len(getattr(side, kind)) for side in sides) == 60
    assert sides[0].cutouts[0].size == (10, 7)
    maps = [np.asarray(labels) for side in sides for _, labels in side.instances]
    assert {tuple(np.unique(labels)) for labels in maps} == {(0, 1), (0, 3)}
    assert all(image.size == labels.size for side in sides for image, labels in side.instances)


def test_files_that_cannot_be_packed_are_named(pack, material):
    with pytest.raises(DataError, match=r"000.jpg is not a cut-out: expected an object on a transparent background"):
        pack(material / "data", "mine", "--cutouts", material / "photos")
    Image.new("L", (50, 40)).save(material / "instances/masks/007.png")
    with pytest.raises(DataError, match=r"007.png has shape \(40, 50\) .*: expected \(40, 60\)"):
        pack(material / "data", "mine", "--instances", material / "instances")
    assert not list((material / "data").iterdir())


def test_missing_archives_are_named(material, pack):
    with pytest.raises(DataError, match=r"no cutouts-\*.zip in .*nowhere.*recipes.nano.pack_sources"):
        read_sources(material / "nowhere", held_out=False)
    pack(material / "data", "openclipart", "--cutouts", material / "cutouts")
    with pytest.raises(DataError, match=r"cutouts-fluent3d.zip is missing beside cutouts-openclipart.zip"):
        read_sources(material / "data", held_out=False)
