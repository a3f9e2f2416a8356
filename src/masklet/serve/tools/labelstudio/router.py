"""The endpoints, under ``/labelstudio``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from masklet.serve.auth import User
from masklet.serve.tools.labelstudio.answers import answer
from masklet.serve.tools.labelstudio.state import state_of
from masklet.version import __version__

router = APIRouter(prefix="/labelstudio", tags=["Label Studio"])

MODEL_VERSION = f"masklet-{__version__}"
EVENTS = {"ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATION_DELETED", "START_TRAINING", "PROJECT_UPDATED"}


class Setup(BaseModel):
    """Label Studio introduces itself."""

    project: str | None = None
    hostname: str | None = None
    access_token: str | None = None


class Params(BaseModel):
    """Parameters of a prediction."""

    context: dict[str, Any] | None = None


class Predict(BaseModel):
    """Tasks to predict, or what a user did in one."""

    tasks: list[dict[str, Any]] = []
    project: str | int | None = None
    label_config: str | None = None
    params: Params | None = None


class Webhook(BaseModel):
    """Something happened in a project."""

    action: str | None = None


@router.get("/")
@router.get("/health")
def health() -> dict[str, Any]:
    """Whether the server works. Needs no token."""
    return {"status": "UP", "model_class": "masklet"}


@router.get("/metrics")
def metrics(user: User) -> dict[str, Any]:
    """Nothing: there is no training."""
    return {}


@router.get("/versions")
def versions(user: User) -> dict[str, Any]:
    """The only version."""
    return {"versions": [MODEL_VERSION]}


@router.post("/setup")
def setup(request: Request, user: User, body: Setup) -> dict[str, Any]:
    """Label Studio connects."""
    state_of(request.app).media.take_token(body.hostname, body.access_token)
    return {"model_version": MODEL_VERSION}


@router.post("/predict")
async def predict(request: Request, user: User, body: Predict) -> dict[str, Any]:
    """Answers what a user did. Requests that are not interactive have no context, and get no results."""
    context = body.params.context if body.params is not None else None
    if not context or not body.tasks:
        return {"results": []}
    reply = await answer(request, user, body.tasks[0], str(body.project), body.label_config or "", context)
    return {"results": [{"model_version": MODEL_VERSION, "score": 0.0, "result": [], **reply}]}


@router.post("/webhook")
def webhook(user: User, body: Webhook) -> JSONResponse:
    """Events of a project. None of them changes the model."""
    if body.action not in EVENTS:
        return JSONResponse({"status": "Unknown event"}, 200)
    return JSONResponse({"result": {}, "status": "ok"}, 201)
