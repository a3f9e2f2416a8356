"""What Label Studio's endpoints keep in an application."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI

from masklet.serve.runtime import Runtime
from masklet.serve.tools.labelstudio.media import LabelStudio
from masklet.serve.tools.labelstudio.videos import Videos


@dataclass(frozen=True)
class State:
    """Media and videos."""

    runtime: Runtime
    media: LabelStudio
    videos: Videos


def state_of(app: FastAPI) -> State:
    """The state of an application, made at its first use."""
    if not hasattr(app.state, "labelstudio"):
        runtime: Runtime = app.state.runtime
        app.state.labelstudio = State(runtime, LabelStudio(runtime.settings), Videos(runtime))
    return app.state.labelstudio
