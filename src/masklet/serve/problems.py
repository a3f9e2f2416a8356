"""Errors as HTTP answers, which never name files of the server."""

from __future__ import annotations

import errno
import logging
import re
import sqlite3
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import DataError, OperationalError, SQLAlchemyError
from starlette.exceptions import HTTPException

from masklet.errors import MaskletError
from masklet.serve.runtime import Disconnected
from masklet.serve.scheduler import Busy

logger = logging.getLogger(__name__)

PATH = re.compile(r"(?:[A-Za-z]:)?[/\\](?:[^\s:;,'\"()]+[/\\])+([^\s:;,'\"()/\\]*)")
"""An absolute path in a message."""
LOOKED_IN = re.compile(r"[;,]? ?\(?looked in [^)]*\)?")
CLIENT_GONE = 499


class Problem(Exception):
    """A request that cannot be fulfilled.

    Args:
        status: HTTP status.
        message: What came, what was expected, and how to fix it.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ProblemReply(BaseModel):
    """What is wrong, in words."""

    detail: str


NOT_FOUND = "there is no such {}, or it belongs to another user"
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemReply, "description": description}
    for status, description in {
        400: "The request is malformed.",
        401: "No valid token.",
        403: "The request comes from another web site.",
        404: "There is no such thing, or it belongs to another user.",
        409: "Something else has to happen first, such as the end of tracking.",
        413: "Too large.",
        422: "Invalid values, images or videos.",
        503: "Busy: try again after the seconds in Retry-After.",
        507: "The server cannot save: its disk is full, for example. Nothing was changed.",
    }.items()
}
"""The errors of all endpoints of the API."""


def public_text(text: str) -> str:
    """A message without absolute paths: names of files stay."""
    return PATH.sub(lambda match: match[1] or "the file", LOOKED_IN.sub("", text))


def answer(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error."""
    return JSONResponse({"detail": public_text(text)}, status, headers)


def add_problem_handlers(app: FastAPI) -> None:
    """Turns errors into answers."""
    handlers: dict[type[Exception], Any] = {
        Problem: lambda request, error: answer(error.status, str(error)),
        Busy: lambda request, error: answer(503, str(error), {"Retry-After": str(error.retry_after)}),
        Disconnected: lambda request, error: answer(CLIENT_GONE, "the client has gone"),
        MaskletError: lambda request, error: answer(422, str(error)),
        HTTPException: lambda request, error: answer(error.status_code, str(error.detail), error.headers),
        RequestValidationError: answer_invalid,
        SQLAlchemyError: answer_unsaved,
        OSError: answer_unsaved,
        Exception: answer_unexpected,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, asynchronous(handler))


def asynchronous(handler: Any) -> Any:
    """Handlers that are plain functions would run in other threads."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return handler(request, error)

    return handle


def answer_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    """422: which value is wrong, and how."""
    parts = []
    for one in error.errors():
        place = ".".join(str(key) for key in one["loc"] if key not in ("body", "query", "path"))
        parts.append(f"{place or 'the body'}: {one['msg']}")
    return answer(422, "; ".join(parts[:5]))


def answer_unsaved(request: Request, error: Exception) -> JSONResponse:
    """The database or the disk refused to save something. What was there before is unchanged."""
    if not isinstance(error, DataError):
        logger.error("could not save", exc_info=error)
    status, text = unsaved(error)
    return answer(status, text, {"Retry-After": "2"} if status == 503 else None)


def unsaved(error: BaseException) -> tuple[int, str]:
    """Status and message, for users, when the database or the disk refuses to save something."""
    if isinstance(error, DataError):
        return 422, "a text in the request contains characters that cannot be saved, such as NUL"
    cause = getattr(error, "orig", None)
    # Not the whole text of an OSError, which names the file.
    text = (error.strerror or "") if isinstance(error, OSError) else str(cause or error)
    if "locked" in text:
        return 503, "the database is locked by another program. Nothing was changed; try again"
    if "full" in text or "No space left" in text or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return 507, "the server's disk is full. Nothing was changed; make room and try again"
    if "readonly" in text or getattr(error, "errno", None) in (errno.EROFS, errno.EACCES, errno.EPERM):
        return 507, "the server's data folder is read-only. Nothing was changed"
    if isinstance(error, OperationalError) and not isinstance(cause, sqlite3.Error):
        return 503, "the database cannot be reached. Nothing was changed; try again"
    return 500, "the server could not read or save its files. Its log says why"


def answer_unexpected(request: Request, error: Exception) -> JSONResponse:
    """500: a defect, whose details are in the log only."""
    logger.error("a request failed", exc_info=error)
    return answer(500, "the server made an error. Its log says which")
