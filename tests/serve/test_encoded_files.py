import os
import shutil

import pytest
from serve.conftest import TRUCK, add_object, upload

import masklet
from masklet.serve.encoded_files import EncodedFiles
from masklet.serve.settings import Settings


@pytest.fixture
def encodes(sam, monkeypatch):
    """Counts how often the image encoder runs."""
    counted, encode = [], sam.engine.encode

    def count(pixels):
        counted.append(pixels.shape)
        return encode(pixels)

    monkeypatch.setattr(sam.engine, "encode", count)
    return counted


def kept(client):
    return sorted((client.app.state.settings.data / "encoded").iterdir())


@pytest.mark.slow
def test_a_restarted_server_does_not_encode_an_image_again(make_client, encodes):
    client = make_client()
    project = client.post("/v1/projects", json={"name": "x"}).json()["id"]
    media = upload(client, project, TRUCK)["id"]
    add_object(client, media)
    prompt = {"points": [[410, 315]]}
    first = client.post(f"/v1/media/{media}/preview", json=prompt).json()
    assert (len(encodes), kept(client)) == (1, [])
    client.__exit__(None, None, None)
    assert len(kept(client)) == 1

    again = make_client()
    assert again.post(f"/v1/media/{media}/preview", json=prompt).json() == first
    assert len(encodes) == 1
    again.__exit__(None, None, None)
    kept(again)[0].write_bytes(b"damaged")
    again = make_client()
    assert again.post(f"/v1/media/{media}/preview", json=prompt).json() == first
    assert len(encodes) == 2
    again.delete(f"/v1/media/{media}")
    assert kept(again) == []


def test_images_that_leave_memory_are_read_again_and_changed_files_are_not(make_client, encodes, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(TRUCK, folder / "a.jpg")
    client = make_client(folder=folder, cache_bytes=1)
    project = client.post("/v1/projects", json={"name": "x"}).json()["id"]
    media = client.post(f"/v1/projects/{project}/folder-media", json={"path": "a.jpg"}).json()["id"]
    first, second = (client.post(f"/v1/media/{media}/preview", json={"points": [[410, 315]]}).json() for _ in range(2))
    assert first == second
    assert len(encodes) == 1
    os.utime(folder / "a.jpg", (1, 1))
    client.post(f"/v1/media/{media}/preview", json={"points": [[410, 315]]})
    assert len(encodes) == 2


def test_requests_without_state_leave_no_files(make_client):
    client = make_client(cache_bytes=1)
    asked = {"prompts": '{"objects": [{"points": [[410, 315]]}]}'}
    with TRUCK.open("rb") as file:
        assert client.post("/v1/predict", files={"image": file}, data=asked).status_code == 200
    assert kept(client) == []


def test_the_least_recently_used_files_make_room(sam, tmp_path):
    image = sam.image(TRUCK)
    size = sum(tensor.nbytes for tensor in image.features)
    files = EncodedFiles(tmp_path, int(2.5 * size), sam)
    paths = [files.path(name, 0, TRUCK) for name in ("a", "b", "c")]
    for age, path in enumerate(paths[:2]):
        files.save(path, image)
        os.utime(path, (age, age))
    assert files.load(paths[0]) is not None  # used last now
    files.save(paths[2], image)
    assert [path.exists() for path in paths] == [True, False, True]
    EncodedFiles(tmp_path, size // 2, sam).save(paths[1], image)
    assert not paths[1].exists()
    files.forget("a")
    assert [path.exists() for path in paths] == [False, False, True]


def test_a_disk_that_is_full_only_costs_time(sam, tmp_path, caplog):
    (tmp_path / "file").touch()
    files = EncodedFiles(tmp_path / "file" / "folder", 2**30, sam)
    files.save(files.path("a", 0, TRUCK), sam.image(TRUCK))
    assert "an encoded image cannot be kept" in caplog.text


def test_files_of_another_input_size_are_not_read(sam, tmp_path):
    other = masklet.load(resolution=sam.image_processor.input_hw[0] + 32)
    names = {EncodedFiles(tmp_path, 1, one).path("a", 0, TRUCK) for one in (sam, other)}
    assert len(names) == 2
    assert Settings(data=tmp_path).disk_cache_bytes > 0
