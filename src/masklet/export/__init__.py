"""Export to ONNX, and a runtime that needs no torch. ``to_onnx`` is imported on first use, since it needs torch."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from masklet.export.writer import ExportedGraph as ExportedGraph
    from masklet.export.writer import to_onnx as to_onnx

__all__ = ["ExportedGraph", "to_onnx"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'masklet.export' has no attribute {name!r}")
    return getattr(import_module("masklet.export.writer"), name)
