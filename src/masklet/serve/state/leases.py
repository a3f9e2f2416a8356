"""Several processes share a data folder: one at a time works on an image or a video."""

from __future__ import annotations

import os
import secrets
import socket
from time import time

from sqlmodel import Session, select

from masklet.serve.scheduler import Busy
from masklet.serve.state.tables import Lease, Media

LEASE_SECONDS = 30
"""A process that is not known to have ended keeps its leases for so long after their last renewal."""


def new_owner() -> str:
    """The name of this process."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def is_gone(owner: str) -> bool:
    """Whether a process is known to have ended: it ran on this machine, and does not any more."""
    host, pid, _ = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def take_lease(session: Session, media_id: str, owner: str) -> None:
    """Takes or renews a lease, in a transaction that writes. Until it ends, other processes wait.

    Raises:
        Busy: Another process has it.
    """
    # Locks the media row, since there may be no lease yet, and reads it again, since another process may just have
    # changed it. SQLite locks the database when a transaction begins to write.
    locked = select(Media).where(Media.id == media_id).with_for_update(key_share=True)
    session.exec(locked.execution_options(populate_existing=True)).one_or_none()
    lease = session.exec(select(Lease).where(Lease.media_id == media_id)).one_or_none()
    if lease is None:
        lease = Lease(media_id=media_id, owner=owner, expires=0)
    elif lease.owner != owner and lease.expires > time() and not is_gone(lease.owner):
        raise Busy("another process of the server is working on this. Try again in a moment")
    lease.owner, lease.expires = owner, time() + LEASE_SECONDS
    session.add(lease)


def release_lease(session: Session, media_id: str, owner: str) -> None:
    """Gives a lease back, in a transaction that writes."""
    lease = session.exec(select(Lease).where(Lease.media_id == media_id)).one_or_none()
    if lease is not None and lease.owner == owner:
        lease.expires = 0
        session.add(lease)
