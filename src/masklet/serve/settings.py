"""The settings of a server."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from masklet.errors import ConfigError

LOCAL_USER = "local"
"""The only user of a server without tokens."""
GIB, MIB = 2**30, 2**20
ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may ask for."""

    upload_bytes: int = 2 * GIB
    body_bytes: int = 64 * MIB
    """Size of a request other than an upload."""
    pixels: int = 100_000_000
    """Pixels of an image or a frame."""
    frames: int = 100_000
    duration: float = 4 * 3600
    """Seconds of a video."""
    media: int = 10_000
    """Images and videos of one user."""
    objects: int = 500
    """Objects of one image or video."""
    clicks_waiting: int = 256
    """Waiting clicks of all users; beyond it, requests are refused with status 503."""
    clicks_waiting_per_user: int = 64
    tracking_jobs: int = 256
    tracking_jobs_per_user: int = 16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server runs.

    Raises:
        ConfigError: The server could be reached from other machines, and has no token; a token is short; an origin is
            invalid.
    """

    data: Path
    """Folder of the database, the uploads and the saved sessions."""
    folder: Path | None = None
    """Files offered to annotate in place. It is only read."""
    host: str = "127.0.0.1"
    port: int = 8000
    tokens: Mapping[str, str] = field(default_factory=dict)
    """{token: user}. None: whoever reaches the server is the user ``LOCAL_USER``."""
    database: str | None = None
    """SQLAlchemy address of another database than ``data/masklet.sqlite``."""
    cache_bytes: int = 2 * GIB
    """Budget of encoded images and open sessions in memory."""
    disk_cache_bytes: int = 4 * GIB
    """Budget of encoded images on disk."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web sites that may call the API, such as https://example.org."""
    labelstudio_url: str | None = None
    """The only address from which media are fetched."""
    labelstudio_token: str | None = None
    """Token for fetching media from Label Studio."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not self.tokens and not is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host} can be reached from other machines: give a --token as well, or leave out --host"
            )
        for token in self.tokens:
            if len(token) < 8 or not token.isascii() or not token.isprintable() or " " in token:
                raise ConfigError("a token must have at least 8 printable ASCII characters and no spaces")
        for origin in self.cors_origins:
            if not ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"--cors {origin} is not an origin: expected https://example.org or http://127.0.0.1:3000, in "
                    "lower case, without a path"
                )


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def users_of(tokens: list[str]) -> dict[str, str]:
    """{token: user} of the command line's ``NAME:TOKEN`` or ``TOKEN``, whose user is named after its checksum."""
    users = {}
    for text in tokens:
        name, separator, token = text.partition(":")
        if not separator:
            name, token = f"user-{sha256(text.encode()).hexdigest()[:12]}", text
        users[token] = name
    return users
