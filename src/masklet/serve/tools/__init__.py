"""The protocols of annotation tools, a router each. Their endpoints call ``masklet.serve.runtime.Runtime``."""

from __future__ import annotations

from fastapi import APIRouter

from masklet.serve.tools import osam
from masklet.serve.tools.cvat import router as cvat
from masklet.serve.tools.labelstudio import router as labelstudio
from masklet.serve.tools.xanylabeling import router as xanylabeling


def routers() -> list[APIRouter]:
    """The routers that ``create_app`` includes, each with its prefix."""
    return [cvat.router, labelstudio.router, osam.router, xanylabeling.router]
