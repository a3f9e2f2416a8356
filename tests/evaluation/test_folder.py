"""Folders of images and masks."""

import numpy as np
import pytest
from PIL import Image

from masklet.errors import ImageError
from masklet.evaluation.folder import read_folder


@pytest.fixture
def folder(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (6, 4), "red").save(tmp_path / "images/one.jpg")
    mask = Image.new("P", (6, 4))
    mask.putpalette(bytes(range(256)) * 3)
    mask.putpixel((5, 1), 2)
    mask.putpixel((0, 0), 255)
    mask.save(tmp_path / "masks/one.png")
    return tmp_path


def write_mask(folder, values):
    Image.fromarray(values).save(folder / "masks/one.png")


def test_palette_masks_are_read_and_void_pixels_are_background(folder):
    examples = read_folder(folder)
    assert len(examples) == 1
    (example,) = examples
    assert example.name == "one"
    assert example.image.shape == (4, 6, 3)
    assert np.argwhere(example.labels).tolist() == [[1, 5]]
    assert example.objects == [2]


@pytest.mark.parametrize("kind", ["L", "1", "RGB"])
def test_a_black_and_white_mask_is_one_object(folder, kind):
    white = np.zeros((4, 6), np.uint8)
    white[2:, 3:] = 255
    Image.fromarray(white).convert(kind).save(folder / "masks/one.png")
    (example,) = read_folder(folder)
    assert np.array_equal(example.labels == 1, white > 0)
    assert example.objects == [1]


def test_masks_of_sixteen_bits_hold_more_objects(folder):
    write_mask(folder, np.arange(24, dtype=np.uint16).reshape(4, 6) * 100)
    (example,) = read_folder(folder)
    assert example.objects == list(range(100, 2400, 100))


def test_an_image_without_objects_is_allowed_if_others_have_objects(folder):
    Image.new("RGB", (6, 4)).save(folder / "images/two.png")
    Image.new("L", (6, 4)).save(folder / "masks/two.png")
    assert [example.objects for example in read_folder(folder)] == [[2], []]
    (folder / "images/one.jpg").unlink()
    with pytest.raises(ImageError, match=r"no mask in .*masks contains an object: expected 0 for the background"):
        list(read_folder(folder))


def test_the_error_names_the_file_that_is_wrong(folder):
    write_mask(folder, np.ones((4, 5), np.uint8))
    with pytest.raises(ImageError, match=r"one\.png is 5×4: expected 6×4, the size of one\.jpg"):
        list(read_folder(folder))
    Image.new("RGB", (6, 4), "red").save(folder / "masks/one.png")
    with pytest.raises(ImageError, match=r"one\.png is an image in colours"):
        list(read_folder(folder))
    (folder / "masks/one.png").write_bytes(b"no mask")
    with pytest.raises(ImageError, match=r"one\.png is not an image"):
        list(read_folder(folder))
    (folder / "images/one.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"one\.jpg is not an image"):
        list(read_folder(folder))
    (folder / "masks/one.png").unlink()
    with pytest.raises(ImageError, match=r"1 of 1 images have no mask: expected .*one\.png"):
        read_folder(folder)
    with pytest.raises(ImageError, match="no images in"):
        read_folder(folder / "masks")
