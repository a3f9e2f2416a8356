"""Media of tasks, fetched from the one Label Studio that the server is configured with."""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.error
import urllib.request
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from masklet.atomic import replacing
from masklet.errors import DataError
from masklet.serve.settings import Settings
from masklet.serve.tools.encoded_text import image_bytes

CLOUD = ("s3", "gs", "azure-blob")
TIMEOUT_S = 30.0
KEPT_S = 3600.0
"""Seconds before a file is fetched again."""
KEPT_BYTES = 8 * 2**30
"""Total size of the files; beyond it, the oldest are deleted."""
TOKEN_S = 240.0
"""A personal access token gives tokens that are valid for five minutes."""
CHUNK = 2**20


def origin_of(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port."""
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError as error:
        raise DataError(f"not an address: {url[:200]}") from error


class SameOrigin(urllib.request.HTTPRedirectHandler):
    """Follows redirects within one host only."""

    def __init__(self, base: str) -> None:
        self.base = base

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """See ``urllib``."""
        if origin_of(newurl) != origin_of(self.base):
            raise DataError(
                f"Label Studio redirects to {urlsplit(newurl).hostname}, and media are fetched from {self.base} only: "
                "let the storage serve its files through Label Studio (“Use pre-signed URLs” off)"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class LabelStudio:
    """Fetches media. Its methods may be called from any thread.

    Args:
        settings: Settings of the server.
    """

    def __init__(self, settings: Settings) -> None:
        self.base = None if settings.labelstudio_url is None else settings.labelstudio_url.rstrip("/")
        self.token = settings.labelstudio_token
        self.most_bytes = settings.limits.upload_bytes
        self.folder = settings.data / "labelstudio"
        self._access: tuple[str, float] | None = None
        self._lock = threading.Lock()

    def take_token(self, hostname: Any, token: Any) -> None:
        """Take the token that Label Studio sends when it connects, if it is the configured one and none was given."""
        if self.base is None or self.token is not None or not isinstance(hostname, str) or not isinstance(token, str):
            return
        if token and origin_of(hostname) == origin_of(self.base):
            self.token = token

    def image(self, user: str, address: str, task: Any = None) -> bytes:
        """The content of an image file. See ``file``."""
        if address.startswith("data:"):
            return image_bytes(address)
        return self.file(user, address, task).read_bytes()

    def file(self, user: str, address: str, task: Any = None) -> Path:
        """A file of a task, fetched if it is not here.

        Args:
            user: Files are kept for each user.
            address: What the task's data holds.
            task: The task's id, for files in a cloud storage.

        Raises:
            DataError: No Label Studio is configured, or the address is elsewhere; it cannot be fetched or is too large.
        """
        url = self.resolve(address, task)
        path = self.folder / f"{sha256(f'{user} {url}'.encode()).hexdigest()}{suffix_of(address)}"
        with self._lock:  # one download at a time; it also lets a second request find the first one's file
            if not path.exists() or time.time() - path.stat().st_mtime > KEPT_S:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.fetch(url, path)
                self.prune(path)
        return path

    def resolve(self, address: str, task: Any = None) -> str:
        """The full address. Raises a DataError if it is not one of Label Studio."""
        if self.base is None:
            raise DataError(
                "the server does not know where Label Studio is, and fetches media from nowhere else: start it with "
                "the address and an access token of Label Studio"
            )
        if address.partition("://")[0] in CLOUD:
            if not isinstance(task, int):
                raise DataError(f"{address[:200]} is in a cloud storage, and the task has no id")
            return f"{self.base}/tasks/{task}/resolve/?fileuri={base64.urlsafe_b64encode(address.encode()).decode()}"
        prefix = urlsplit(self.base).path
        if address.startswith("/") and not address.startswith(("//", f"{prefix}/")):
            address = prefix + address
        host = origin_of(address)[1]  # also refuses what is no address
        url = urljoin(f"{self.base}/", address)
        if origin_of(url) != origin_of(self.base):
            raise DataError(f"media are fetched from {self.base} only, and the task's are at {host or address[:200]}")
        return url

    def fetch(self, url: str, path: Path) -> None:
        """Write what is at an address to a file."""
        try:
            with self.open(url, self.authorization()) as reply, replacing(path) as unfinished:
                size = 0
                with open(unfinished, "wb") as file:
                    while chunk := reply.read(CHUNK):
                        size += len(chunk)
                        if size > self.most_bytes:
                            raise DataError(f"the task's file has more than {self.most_bytes} bytes")
                        file.write(chunk)
        except urllib.error.HTTPError as error:
            advice = ": is the access token right?" if error.code in (401, 403) else ""
            raise DataError(f"Label Studio answered {error.code} for the task's file{advice}") from error
        except (OSError, HTTPException) as error:
            raise DataError(f"the task's file cannot be fetched from Label Studio: {error}") from error

    def open(self, url: str, authorization: str | None, data: bytes | None = None) -> Any:
        """A reply that can be read."""
        assert self.base is not None
        headers = {"Authorization": authorization} if authorization else {}
        if data is not None:
            headers["Content-Type"] = "application/json"
        opener = urllib.request.build_opener(SameOrigin(self.base))
        return opener.open(urllib.request.Request(url, data, headers), timeout=TIMEOUT_S)

    def authorization(self) -> str | None:
        """The header for the token: of a legacy token, or of an access token that a personal one gives."""
        if self.token is None:
            return None
        if self.token.count(".") != 2:
            return f"Token {self.token}"
        if self._access is None or time.monotonic() - self._access[1] > TOKEN_S:
            with self.open(
                f"{self.base}/api/token/refresh", None, json.dumps({"refresh": self.token}).encode()
            ) as reply:
                self._access = json.load(reply)["access"], time.monotonic()
        return f"Bearer {self._access[0]}"

    def prune(self, keep: Path) -> None:
        """Delete the oldest files beyond the limit."""
        files = sorted((path for path in self.folder.iterdir() if path != keep), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in [*files, keep])
        for path in files:
            if total <= KEPT_BYTES:
                return
            total -= path.stat().st_size
            path.unlink(missing_ok=True)


def suffix_of(address: str) -> str:
    """A suffix for the file: letters and digits of the address's own."""
    suffix = Path(urlsplit(address).path).suffix
    return suffix.lower() if suffix[1:].isalnum() and suffix.isascii() and len(suffix) <= 6 else ""
