"""The application: one process, one device."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import time
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from sqlmodel import col, select

import masklet
from masklet.segmenter import Segmenter
from masklet.serve import tools
from masklet.serve.api import everything, exports, objects, projects, tracking
from masklet.serve.problems import add_problem_handlers
from masklet.serve.runtime import Runtime
from masklet.serve.safety import Safety
from masklet.serve.settings import Settings
from masklet.serve.state.database import Database, open_database
from masklet.serve.state.leases import is_gone
from masklet.serve.state.tables import Media
from masklet.serve.workspace import Workspace
from masklet.version import __version__

STATIC = Path(__file__).parent / "static"
DAY = 24 * 3600
FOLDERS = ("uploads", "sessions", "exports", "encoded")


def create_app(settings: Settings, sam: Segmenter | None = None) -> FastAPI:
    """The application, for any ASGI server.

    ``app.state.settings``, ``app.state.runtime`` and ``app.state.workspace`` are what endpoints work with.

    Args:
        settings: How it runs.
        sam: The model; the embedded one if None.
    """
    prepare(settings.data)
    database = open_database(settings.data, settings.database)
    runtime = Runtime(settings, sam or masklet.load())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            runtime.close()
            database.close()

    app = FastAPI(title="masklet", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.settings = settings
    app.state.runtime = runtime
    app.state.workspace = Workspace(settings, runtime, database)
    remove_leftovers(settings.data, database)
    add_problem_handlers(app)
    for router in (projects.router, objects.router, tracking.router, everything.router, exports.router):
        app.include_router(router)
    for router in tools.routers():
        app.include_router(router)
    add_page(app)
    app.add_middleware(Safety, settings=settings)
    if settings.cors_origins:
        from starlette.middleware.cors import CORSMiddleware

        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "Content-Disposition"],
        )
    return app


def prepare(data: Path) -> None:
    """Makes the folders, and removes the sessions of processes that have ended."""
    for name in FOLDERS:
        (data / name).mkdir(parents=True, exist_ok=True)
    for folder in data.glob("sessions/*~*~*"):
        if is_gone(folder.name.replace("~", ":")):
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(data: Path, database: Database) -> None:
    """Removes uploads and exports that a process was making when it was killed, once nobody can be making them."""
    with database.reading() as db:
        known = set(db.exec(select(Media.path).where(col(Media.in_folder).is_(False))).all())
    for file in data.glob("uploads/*"):
        if file.name not in known and is_old(file):
            file.unlink(missing_ok=True)
    for folder in data.glob("exports/*"):
        if is_old(folder):
            shutil.rmtree(folder, ignore_errors=True)


def is_old(path: Path) -> bool:
    """Whether a file was left alone for a day."""
    try:
        return path.stat().st_mtime < time() - DAY
    except OSError:  # another process has just removed it
        return False


def add_page(app: FastAPI) -> None:
    """The web page, and whether the server works."""

    @app.get("/health", tags=["server"])
    def health() -> dict[str, Any]:
        """Whether the server works. Needs no token."""
        return {"status": "UP", "model_class": "masklet", "version": __version__}

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
