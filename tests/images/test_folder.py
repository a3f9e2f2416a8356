from masklet.images.folder import images_in


def test_images_are_listed_in_natural_order(tmp_path):
    names = ["Frame1.PNG", "frame2.png", "frame2b.png", "frame010.jpg", "frame10.png", "other3.bmp"]
    for name in [*reversed(names), "notes.txt", "._frame2.png", ".hidden.jpg"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in images_in(tmp_path)] == names


def test_a_folder_may_have_no_images(tmp_path):
    assert images_in(tmp_path) == []
