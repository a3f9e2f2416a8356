"""Results: masks to use, visualise, save, export and import."""

from masklet.results.candidates import CandidateMasks
from masklet.results.masks import Masks

__all__ = ["CandidateMasks", "Masks"]
