"""Replies of X-AnyLabeling-Server: ``{success, data}`` or ``{success, error: {code, message}}``."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from masklet.errors import ImageError, MaskletError


class ApiError(Exception):
    """An error with X-AnyLabeling's code."""

    def __init__(self, code: str, message: str, status: int = 404) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


def success(data: Any) -> dict[str, Any]:
    """A reply."""
    return {"success": True, "data": data}


def failure(code: str, message: str, status: int) -> JSONResponse:
    """An error. X-AnyLabeling 4.2 reads ``data`` only: without it, it would delete shapes, and show nothing."""
    data = {"shapes": [], "description": message, "replace": False}
    error = {"code": code, "message": message}
    return JSONResponse({"success": False, "error": error, "data": data, "detail": message}, status)


class Route(APIRoute):
    """Answers errors as X-AnyLabeling-Server does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See ``APIRoute``."""
        handle = super().get_route_handler()
        is_one_shot = self.path.endswith("/predict")

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except ApiError as error:
                return failure(error.code, str(error), 200 if is_one_shot else error.status)
            except MaskletError as error:
                code = "INVALID_IMAGE" if isinstance(error, ImageError) else "INFERENCE_ERROR"
                return failure(code, str(error), 200 if is_one_shot else 422)
            except RequestValidationError as error:
                places = "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()[:5])
                return failure("INVALID_REQUEST", places, 422)
            except HTTPException as error:
                code = "UNAUTHORIZED" if error.status_code == 401 else "INVALID_REQUEST"
                reply = failure(code, str(error.detail), error.status_code)
                reply.headers.update(error.headers or {})
                return reply

        return answer
