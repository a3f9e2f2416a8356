"""Work on Ray: data sets, data sets of your own pipelines, and the server.

Ray schedules, restarts and retries; what is here starts it with the right settings and converts.
"""

from masklet.cluster.pipelines import segment

__all__ = ["segment"]
