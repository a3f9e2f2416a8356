import socket

import pytest
from typer.testing import CliRunner

from masklet.cli import app
from masklet.errors import MaskletError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from other machines: give a --token as well"),
        (["--host", "0.0.0.0", "--token", "short"], "a token must have at least 8 printable ASCII characters"),
        (["missing"], "missing is no folder: expected a folder of images and videos"),
        (["--port", "BUSY"], "cannot listen on 127.0.0.1 port BUSY: Address already in use. Give another --port"),
    ],
)
def test_what_cannot_be_served_is_said_before_the_model_is_loaded(options, message, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKLET_TOKENS", "")
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        options = ["serve", "--data", str(tmp_path), "--model", "no-such-model", *options]
        done = CliRunner().invoke(app, [option.replace("BUSY", port) for option in options])
    assert isinstance(done.exception, MaskletError)
    assert message.replace("BUSY", port) in str(done.exception)
