import pytest

pytest.importorskip("fastapi", reason="the server needs masklet[serve]")

from serve.tools.label_studio_host import Host  # noqa: E402

from masklet.errors import DataError  # noqa: E402
from masklet.serve.settings import Limits, Settings  # noqa: E402
from masklet.serve.tools.labelstudio.media import LabelStudio  # noqa: E402


@pytest.fixture
def host():
    host = Host("secret")
    host.files["/data/a.png"] = b"content"
    yield host
    host.close()


def media(tmp_path, host, **changes):
    settings = {"labelstudio_url": host.url, "labelstudio_token": "secret", **changes}
    return LabelStudio(Settings(data=tmp_path, **settings))


def test_a_file_is_fetched_once_for_each_user(tmp_path, host):
    studio = media(tmp_path, host)
    paths = [studio.file(user, "/data/a.png") for user in ("ann", "ann", "bob")]
    assert [path.read_bytes() for path in paths] == [b"content"] * 3
    assert paths[0] == paths[1] != paths[2]
    assert host.asked == ["/data/a.png"] * 2


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest/meta-data",
        "//evil.example/a.png",
        "file:///etc/passwd",
        "ftp://127.0.0.1/a",
        "http://127.0.0.1:1/a.png",
        "https://127.0.0.1/a.png",
        "http://127.0.0.1@evil.example/a.png",
        "http://[::1/a.png",
    ],
)
def test_nothing_is_fetched_from_elsewhere(tmp_path, host, address):
    with pytest.raises(DataError, match=r"media are fetched from|not an address"):
        media(tmp_path, host).file("ann", address)
    assert host.asked == []


def test_a_redirect_to_another_host_is_not_followed(tmp_path, host):
    host.redirects["/data/a.png"] = "http://evil.example/a.png"
    with pytest.raises(DataError, match=r"Label Studio redirects to evil\.example"):
        media(tmp_path, host).file("ann", "/data/a.png")


def test_a_redirect_on_the_same_host_is_followed(tmp_path, host):
    host.redirects["/tasks/5/resolve/?fileuri=czM6Ly9iL2EucG5n"] = "/data/a.png"
    assert media(tmp_path, host).image("ann", "s3://b/a.png", 5) == b"content"


def test_without_a_configured_host_nothing_is_fetched(tmp_path, host):
    with pytest.raises(DataError, match="the server does not know where Label Studio is"):
        media(tmp_path, host, labelstudio_url=None).file("ann", f"{host.url}/data/a.png")


def test_a_wrong_token_is_named_and_leaves_no_file(tmp_path, host):
    with pytest.raises(DataError, match="answered 401 for the task's file: is the access token right"):
        media(tmp_path, host, labelstudio_token="wrong").file("ann", "/data/a.png")
    assert list((tmp_path / "labelstudio").iterdir()) == []


def test_a_file_that_is_too_large_is_refused(tmp_path, host):
    with pytest.raises(DataError, match="more than 3 bytes"):
        media(tmp_path, host, limits=Limits(upload_bytes=3)).file("ann", "/data/a.png")
    assert list((tmp_path / "labelstudio").iterdir()) == []


def test_the_token_of_setup_is_taken_from_the_configured_host_only(tmp_path, host):
    studio = media(tmp_path, host, labelstudio_token=None)
    studio.take_token("http://evil.example", "stolen")
    assert studio.token is None
    studio.take_token(host.url, "secret")
    assert studio.file("ann", "/data/a.png").read_bytes() == b"content"
