"""What FiftyOne calls: a module of its model zoo."""

from masklet.integrations.fiftyone.models import download_model, load_model

__all__ = ["download_model", "load_model"]
