"""Debian's Postgres, for a test."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.servers.services import choose_port

BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


def as_postgres(*command: str) -> str:
    """Run a program of Postgres', which refuses to run as root."""
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    return subprocess.run([*user, *command], check=True, capture_output=True, text=True, cwd="/tmp").stdout.strip()


@contextmanager
def postgres_server(password: str, *databases: str) -> Iterator[str]:
    """The address of a server with `databases` of the user lori, who has that password."""
    directory, port = as_postgres("mktemp", "-d", "/tmp/lori-postgres-XXXX"), choose_port()
    data = f"{directory}/data"
    as_postgres(f"{BIN}/initdb", "-D", data, "--auth-local=trust", "--auth-host=scram-sha-256")
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {directory}"
    as_postgres(f"{BIN}/pg_ctl", "-D", data, "-l", f"{directory}/log", "-w", "-o", options, "start")
    try:
        made = [f"CREATE DATABASE {name} OWNER lori" for name in databases]
        for statement in (f"CREATE ROLE lori LOGIN PASSWORD '{password}'", *made):
            as_postgres("psql", "-h", directory, "-p", str(port), "-c", statement)
        yield f"127.0.0.1:{port}"
    finally:
        as_postgres(f"{BIN}/pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(directory)
