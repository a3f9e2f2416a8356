import os
import socket
import threading
import time

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from serve.postgresql import postgresql
from sqlmodel import SQLModel

from masklet.errors import ConfigError
from masklet.serve.cache import Cache
from masklet.serve.scheduler import Busy
from masklet.serve.state.database import open_database
from masklet.serve.state.leases import new_owner, release_lease, take_lease
from masklet.serve.state.tables import Media, Project

DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=DATABASES)
def address(request):
    """Of SQLAlchemy; None for SQLite in the data folder."""
    if request.param == "sqlite":
        yield None
    else:
        with postgresql() as url:
            yield url


def test_the_migrations_make_the_tables(address, tmp_path):
    opened = open_database(tmp_path, address)
    with opened.engine.connect() as connection:
        ours = [
            change
            for change in compare_metadata(MigrationContext.configure(connection), SQLModel.metadata)
            if getattr(change[1], "name", "") != "alembic_version"
        ]
    opened.close()
    assert ours == []


@pytest.fixture
def database(address, tmp_path):
    opened = open_database(tmp_path, address)
    with opened.writing() as db:
        for table in reversed(SQLModel.metadata.sorted_tables):
            db.exec(sa.delete(table))
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
        with pytest.raises(Busy, match="another process of the server"):
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


def test_of_two_processes_that_take_a_lease_at_once_one_has_to_wait(database):
    asking, answers = threading.Event(), []

    def take():
        try:
            with database.writing() as db:
                asking.set()
                take_lease(db, "m", "another-machine:1:ab")
        except Busy as error:
            answers.append(error)

    with database.writing() as db:
        take_lease(db, "m", new_owner())
        db.flush()
        other = threading.Thread(target=take, daemon=True)
        other.start()
        time.sleep(0.3)  # the other one is waiting for this transaction now
        assert answers == []
    other.join(60)
    assert len(answers) == 1
    assert asking.is_set()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "--database is not a URL: expected postgresql"),
        ("nonsense://ann:secret@host/x", r"cannot use --database nonsense://ann:\*\*\*@host/x: Can't load plugin"),
        ("postgresql+asyncpg_none://h/x", "cannot use --database"),
    ],
)
def test_messages_say_why_a_database_cannot_be_used_and_hide_its_password(url, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        open_database(tmp_path, url)
    assert "secret" not in str(caught.value)


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


def test_a_data_folder_that_cannot_hold_a_database_is_refused(tmp_path):
    (tmp_path / "masklet.sqlite").mkdir()
    with pytest.raises(ConfigError, match=r"cannot use the database .*masklet.sqlite: unable to open database file"):
        open_database(tmp_path, None)
