"""A PostgreSQL server for tests."""

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
PATIENCE = 120


@contextmanager
def postgresql():
    """The URL of a database in a new cluster, which is removed in the end. The test is skipped without PostgreSQL."""
    pytest.importorskip("psycopg", reason="needs masklet[postgresql]")
    initdb = shutil.which("initdb") or (PROGRAMS and PROGRAMS[-1] / "initdb")
    if not initdb:
        pytest.skip("needs PostgreSQL (Debian's package postgresql)")
    # The server refuses to run as root.
    other = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="masklet-"))  # short: it holds a socket
    if other:
        shutil.chown(folder, "postgres", "postgres")

    def run(program, *arguments):
        command = [Path(initdb).with_name(program), *arguments]
        subprocess.run(command, check=True, timeout=PATIENCE, cwd=folder, stdout=subprocess.DEVNULL, **other)

    data = folder / "data"
    try:
        run("initdb", "-D", data, "-U", "masklet", "-A", "trust", "--no-sync")
        options = f"-k {folder} -c listen_addresses= -c fsync=off"
        run("pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
        try:
            yield f"postgresql+psycopg://masklet@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
