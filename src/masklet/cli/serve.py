"""masklet serve."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masklet.cli.cluster import ReplicaOptions
from masklet.cli.groups import grouped
from masklet.cli.options import ModelOptions
from masklet.errors import MaskletError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from masklet.cluster.serving import Replicas
    from masklet.serve.settings import Settings

ACCESS, STORAGE = "Access", "Storage"


@dataclass(frozen=True, kw_only=True)
class StorageOptions:
    """Where a server keeps its state, and the sizes of its caches."""

    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the database and the uploads.",
            show_default="~/.local/share/masklet",
            rich_help_panel=STORAGE,
        ),
    ] = None
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Database shared by several processes, such as postgresql+psycopg://user:password@host/name "
            "(pip install masklet[postgresql]).",
            show_default="SQLite in --data",
            rich_help_panel=STORAGE,
        ),
    ] = None
    cache: Annotated[
        float,
        typer.Option(min=0.01, metavar="GB", help="Memory for encoded images and sessions.", rich_help_panel=STORAGE),
    ] = 2.0
    disk_cache: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="GB",
            help="Disk space in --data for encoded images that no longer fit in memory; 0 saves none.",
            rich_help_panel=STORAGE,
        ),
    ] = 4.0

    @property
    def values(self) -> dict[str, Any]:
        """Values of ``Settings``."""
        return {
            "data": (self.data or default_data()).absolute(),
            "database": self.database,
            "cache_bytes": int(self.cache * 2**30),
            "disk_cache_bytes": int(self.disk_cache * 2**30),
        }


@dataclass(frozen=True, kw_only=True)
class AccessOptions:
    """Who may use a server, and what it may fetch."""

    token: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME:]TOKEN",
            help="Token of a user. Repeatable. Required if --host is reachable from other machines. The "
            "environment variable MASKLET_TOKENS adds more, separated by spaces.",
            rich_help_panel=ACCESS,
        ),
    ] = None
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="A web site that may call the API, such as https://example.org. Repeatable.",
            rich_help_panel=ACCESS,
        ),
    ] = None
    labelstudio_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Label Studio server to fetch images from.", rich_help_panel=ACCESS),
    ] = None
    labelstudio_token: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="Its access token.", rich_help_panel=ACCESS)
    ] = None

    @property
    def tokens(self) -> list[str]:
        """Tokens of the command line and of the environment."""
        return [*(self.token or []), *os.environ.get("MASKLET_TOKENS", "").split()]


@grouped
def serve(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder of images and videos to annotate in place. It is only read."),
    ] = None,
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any that is free.")] = 8000,
    storage: StorageOptions,
    access: AccessOptions,
    cluster: ReplicaOptions,
    model: ModelOptions,
) -> None:
    """Segment images and videos on a web page, or through an HTTP API.

    Prints the address of the page. Ctrl-C ends the server; everything is saved.
    """
    check_installed()
    settings = settings_of(folder, host, port, storage, access)
    replicas = cluster.replicas()
    with bound_socket(host, port) as listening:
        settings = replace(settings, port=listening.getsockname()[1])
        if replicas is not None:
            listening.close()  # Ray's proxy listens there
            serve_on_ray(settings, model, replicas)
        else:
            app = application(settings, model)
            print_address(settings)
            run(app, listening)


def check_installed() -> None:
    """Raises a MaskletError if a package that the server needs is not installed."""
    try:
        for name in ("uvicorn", "masklet.serve.app"):
            import_module(name)
    except ModuleNotFoundError as error:
        raise MaskletError(f"{error.name} is not installed: pip install 'masklet[serve]'") from error


def settings_of(folder: Path | None, host: str, port: int, storage: StorageOptions, access: AccessOptions) -> Settings:
    """The settings of a server, from the options.

    Raises:
        MaskletError: ``folder`` is not a folder.
        ConfigError: See ``Settings``.
    """
    from masklet.serve.settings import Settings, users_of

    if folder is not None and not folder.is_dir():
        raise MaskletError(f"{folder} is no folder: expected a folder of images and videos, or none to upload them")
    return Settings(
        folder=None if folder is None else folder.absolute(),
        host=host,
        port=port,
        tokens=users_of(access.tokens),
        cors_origins=tuple(access.cors or ()),
        labelstudio_url=access.labelstudio_url,
        labelstudio_token=access.labelstudio_token,
        **storage.values,
    )


def application(settings: Settings, model: ModelOptions) -> FastAPI:
    """The application with its model.

    Raises:
        MaskletError: The model, the data folder or the database cannot be used.
    """
    from masklet.serve.app import create_app

    sam = model.load()
    try:
        return create_app(settings, sam)
    except OSError as error:
        raise MaskletError(f"cannot use the data folder {settings.data}: {error.strerror or error}") from error


def run(app: FastAPI, listening: socket.socket) -> None:
    """Serves until interrupted."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5, server_header=False)
    uvicorn.Server(config).run(sockets=[listening])


def serve_on_ray(settings: Settings, model: ModelOptions, replicas: Replicas) -> None:
    """Serves with replicas until Ctrl-C."""
    from masklet.cluster.serving import serving

    with serving(settings, model.keywords, replicas), suppress(KeyboardInterrupt):
        print_address(settings)
        threading.Event().wait()


def print_address(settings: Settings) -> None:
    """Prints the address of the page."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"masklet: http://{host}:{settings.port} (Ctrl-C ends it); data in {settings.data}", flush=True)


def default_data() -> Path:
    """Where a server keeps its data by default."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "masklet"


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens there, or will: bound before the model is loaded, which takes time.

    Raises:
        MaskletError: The address is in use, or is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise MaskletError(f"--host {host}: there is no such address ({error.strerror or error})") from error
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise MaskletError(
            f"cannot listen on {host} port {port}: {error.strerror or error}. Give another --port or --host"
        ) from error
    return bound
