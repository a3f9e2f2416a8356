"""Masks as people use them: saved, drawn, exported, imported."""

from masklet.results.masks import Masks

__all__ = ["Masks"]
