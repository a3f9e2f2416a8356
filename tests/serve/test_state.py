import os
import socket

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlmodel import SQLModel

from masklet.serve.cache import Cache
from masklet.serve.scheduler import Busy
from masklet.serve.state.database import migrate, open_database
from masklet.serve.state.leases import new_owner, release_lease, take_lease
from masklet.serve.state.tables import Media, Project


def test_the_migrations_make_the_tables():
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    migrate(engine)
    with engine.connect() as connection:
        ours = [
            change
            for change in compare_metadata(MigrationContext.configure(connection), SQLModel.metadata)
            if getattr(change[1], "name", "") != "alembic_version"
        ]
    engine.dispose()
    assert ours == []


@pytest.fixture
def database(tmp_path):
    opened = open_database(tmp_path, None)
    with opened.writing() as db:
        db.add(Project(id="p", user="ann", name="x"))
        db.flush()
        rest = {"kind": "image", "name": "a", "in_folder": False, "path": "m", "width": 1, "height": 1}
        db.add(Media(id="m", project_id="p", user="ann", frames=1, fps=0, **rest))
    yield opened
    opened.close()


def test_a_lease_is_one_process_s_until_it_gives_it_back_or_ends(database):
    mine, other = new_owner(), f"another-machine:{os.getpid()}:ab"
    with database.writing() as db:
        take_lease(db, "m", mine)
        take_lease(db, "m", mine)
        with pytest.raises(Busy, match="through another process"):
            take_lease(db, "m", other)
        release_lease(db, "m", other)  # not its own
        with pytest.raises(Busy):
            take_lease(db, "m", other)
        release_lease(db, "m", mine)
        take_lease(db, "m", other)
        with pytest.raises(Busy):
            take_lease(db, "m", mine)
        release_lease(db, "m", other)
        take_lease(db, "m", f"{socket.gethostname()}:{2**22 + 1}:ab")  # no process has such a number
        take_lease(db, "m", mine)


def test_a_transaction_that_fails_changes_nothing(database):
    def fail(db):
        db.add(Project(id="q", user="ann", name="x"))
        db.flush()
        raise KeyError

    with database.writing() as db:
        with pytest.raises(KeyError):
            fail(db)
        db.rollback()
    with pytest.raises(KeyError), database.writing() as db:
        fail(db)
    with database.reading() as db:
        assert db.get(Project, "q") is None


def test_the_least_recently_used_values_leave_the_cache_but_not_those_in_use():
    cache, left = Cache(100), []

    def use(key, size=40):
        return cache.use(key, lambda: key, lambda _: size, left.append)

    for key in ("a", "b"):
        with use(key):
            pass
    with use("a"), use("c"):
        pass
    assert left == ["b"]
    with use("a", 40), use("d", 90), use("e", 90):
        assert cache.is_full
        assert "a" in cache
    assert cache.bytes <= 100
    cache.clear()
    assert sorted(left) == ["a", "b", "c", "d", "e"]
