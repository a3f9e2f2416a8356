"""Checks of every request, and headers of every answer."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from masklet.serve.settings import Settings, is_loopback

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
ENVELOPE_BYTES = 2**20
"""Bytes of an upload besides its file."""


class Safety:
    """ASGI middleware.

    - Bodies are limited.
    - Requests of other web sites are refused: browsers say where a request comes from (``Origin``,
      ``Sec-Fetch-Site``). There are no cookies, so a site could only use a server that needs no token.
    - Without tokens, ``Host`` must name this machine: a site could otherwise reach it by a name of
      its own that leads here.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer.setdefault(name, value)
                answer.setdefault("Cache-Control", "no-store")
            await send(message)

        if refusal := self.refusal(scope["method"], headers):
            await refuse(send_safely, *refusal)
            return
        await self.app(scope, self.limited(scope, receive), send_safely)

    def refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        """Why a request is refused, if it is."""
        host = headers.get("host", "")
        if not self.settings.tokens and not is_loopback(urlsplit(f"//{host}").hostname or ""):
            return 403, "this server is for this machine only: open it as http://127.0.0.1, or start it with a token"
        origin = headers.get("origin")
        is_own = origin is None or urlsplit(origin).netloc == host or origin in self.settings.cors_origins
        is_foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if not is_own or (is_foreign and method not in ("GET", "HEAD", "OPTIONS") and origin is None):
            return 403, "this request comes from another web site"
        return None

    def limited(self, scope: Scope, receive: Receive) -> Receive:
        """The same body, up to the limit."""
        limit, received = self.limit(scope), 0

        async def receive_some() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, f"the request is too large: expected at most {limit:,} bytes")
            return message

        return receive_some

    def limit(self, scope: Scope) -> int:
        """The largest body of a request."""
        limits = self.settings.limits
        path = scope["path"]
        # X-AnyLabeling sends all frames of a video in one request.
        is_upload = (path.startswith("/v1/projects/") and path.endswith("/media")) or path.endswith("/v1/video/init")
        return limits.upload_bytes + ENVELOPE_BYTES if is_upload else limits.body_bytes


async def refuse(send: Send, status: int, detail: str) -> None:
    """Answers with an error."""
    body = json.dumps({"detail": detail}).encode()
    headers: list[Any] = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
