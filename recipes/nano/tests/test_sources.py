"""Sources of compositions."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from masklet.errors import DataError
from recipes.nano import sources as sources_module
from recipes.nano.object_parts import parts_of
from recipes.nano.sources import (
    CUTOUT_ARCHIVES,
    IMAGE_ARCHIVES,
    INSTANCE_ARCHIVES,
    Sources,
    is_held_out,
    read_sources,
    source_group,
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("coco_000000000030_002.webp", "images/coco_000000000030.jpg"),
        ("1f469-1f3fb-200d-1f373.webp", "u1f469.webp"),
        ("2602.webp", "u02602.webp"),
        ("ambulance/1.webp", "ambulance/5.webp"),
        ("images/dsb_ab12.jpg", "masks/dsb_ab12.png"),
    ],
)
def test_files_of_the_same_subject_are_in_the_same_group(one, other):
    assert source_group(one) == source_group(other)


def test_held_out_sources_are_few_and_share_no_group_with_those_for_training(data_folder):
    groups = {True: set(), False: set()}
    for name in [*(f"cutouts-{name}" for name in CUTOUT_ARCHIVES), *IMAGE_ARCHIVES, *INSTANCE_ARCHIVES]:
        with zipfile.ZipFile(data_folder / f"{name}.zip") as archive:
            for file in archive.namelist():
                groups[is_held_out(file)].add(source_group(file))
    assert not groups[True] & groups[False]
    assert 0.02 < len(groups[True]) / len(groups[False]) < 0.1


def test_held_out_sources_are_of_all_kinds(data_folder):
    sources = read_sources(data_folder, held_out=True)
    assert len(sources.cutouts) > 100
    assert len(sources.images) > 10
    assert len(sources.instances) > 10
    assert all(image.size == labels.size for image, labels in sources.instances)


def test_parts_of_a_cutout_are_found_once(monkeypatch):
    calls = []
    monkeypatch.setattr(sources_module, "parts_of", lambda cutout: calls.append(cutout) or parts_of(cutout))
    two_colours = Image.new("RGBA", (40, 30), "red")
    two_colours.paste("blue", (0, 0, 20, 30))
    sources = Sources([two_colours, two_colours, Image.new("RGBA", (9, 9), "red")], [], [])  # the first is listed twice
    first, again, twin, _ = (sources.parts_of_cutout(index) for index in (0, 0, 1, 2))
    assert len(calls) == 2
    assert set(np.unique(first)) == {1, 2}
    assert np.array_equal(first, parts_of(two_colours))
    assert np.array_equal(first, again)
    assert np.array_equal(first, twin)


def test_a_kind_of_sources_that_is_missing_on_one_side_is_named(archives, tmp_path):
    for archive in archives.iterdir():
        (tmp_path / archive.name).symlink_to(archive)
    for name in IMAGE_ARCHIVES:
        (tmp_path / f"{name}.zip").unlink()
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w"):
            pass
    with pytest.raises(DataError, match=r"the archives photos-\*.zip in .* hold nothing for validation"):
        read_sources(tmp_path, held_out=True)
