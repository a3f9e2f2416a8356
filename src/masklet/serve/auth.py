"""Who makes a request: a token is a user."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping
from typing import Annotated

from fastapi import Depends, HTTPException, Request

from masklet.serve.settings import LOCAL_USER, Settings


def user_of_token(settings: Settings, token: str | None) -> str | None:
    """The user whose token this is; None if it is nobody's. Without tokens, everybody is the local user."""
    if not settings.tokens:
        return LOCAL_USER
    given = (token or "").encode(errors="replace")
    found = None
    for known, user in settings.tokens.items():  # all are compared, so that the time reveals nothing
        if hmac.compare_digest(known.encode(), given):
            found = user
    return found


def token_of(headers: Mapping[str, str]) -> str | None:
    """The token that the headers of a request carry.

    ``Authorization: Bearer TOKEN``; ``Authorization: Basic``, of which the password is the token; or ``Token: TOKEN``.
    """
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return headers.get("token")


def require_user(request: Request) -> str:
    """A dependency: the user of a request, which is refused with status 401 if there is none."""
    settings: Settings = request.app.state.settings
    user = user_of_token(settings, token_of(request.headers))
    if user is None:
        raise HTTPException(
            401,
            "a valid token is needed: send the header 'Authorization: Bearer TOKEN'",
            {"WWW-Authenticate": "Bearer"},
        )
    return user


User = Annotated[str, Depends(require_user)]
"""The user of a request, as an argument of an endpoint."""
