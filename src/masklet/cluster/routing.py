"""Which replica of the server answers a request."""

from __future__ import annotations

import heapq
import pickle
import random
import re
from hashlib import sha256
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica
from starlette.datastructures import Headers

from masklet.serve.auth import token_of

ON_MEDIA = re.compile(r"/v1/media/[^/]+")
IN_MEMORY = re.compile(r"/(xanylabeling|labelstudio)/")
"""Tools whose open videos are in the memory of one replica."""
TRIED = 3
"""Replicas to try for an image or a video, if the first ones are full."""


class MediaRouter(RequestRouter):
    """Sends requests on one image or video to one replica, which has it encoded, as long as that replica runs.

    All others go to the less busy of two random replicas, which is Ray's default.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Groups of replicas in the order in which they are tried; in a group, the least busy one is first."""
        subject = None if pending_request is None else subject_of(pending_request.args)
        if subject is None:
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]

        def weight(replica: RunningReplica) -> bytes:
            return sha256(f"{subject} {replica.replica_id.unique_id}".encode()).digest()

        # Highest random weight hashing: when replicas come or go, few subjects move.
        return [[one] for one in heapq.nlargest(TRIED, candidate_replicas, key=weight)]


def subject_of(args: list[Any]) -> str | None:
    """Key of what a request needs in the memory of its replica; None if any replica will do.

    Args:
        args: Arguments of Ray's ``PendingRequest``: for HTTP, a pickled object with the ASGI scope.
    """
    if not args or not isinstance(args[0], bytes):
        return None
    scope = pickle.loads(args[0]).asgi_scope
    path: str = scope["path"]
    if media := ON_MEDIA.match(path):
        return media[0]
    if tool := IN_MEMORY.match(path):
        user = token_of(Headers(scope=scope)) or (scope.get("client") or [""])[0]
        return f"{tool[1]} {user}"
    return None
