"""Runs over data sets, your own pipelines and the server on Ray.

Ray schedules, restarts and retries; this package configures it and converts inputs and results.
"""

from masklet.cluster.pipelines import segment

__all__ = ["segment"]
