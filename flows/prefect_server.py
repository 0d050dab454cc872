"""`prefect server start` for workers that share its SQLite file: no transaction is refused, and none stops the server.

Two things are mended in the connections that Prefect 3.8 makes:

- Its transactions begin as readers. One that then writes is refused at once ("database is locked") if another has
  written since: a client tries again seconds later, an event is lost after some tries. Here they begin as writers and
  wait for their turn (https://www.sqlite.org/lang_transaction.html); none of them waits for another within itself.
- Until Python 3.12 a cursor keeps the statement that it failed at until it is freed, and freeing it waits for what its
  connection does by then. It is the event loop that frees it. Where the connection waits for a transaction at that
  moment, nobody can end that one: the server answers nothing for the minute that SQLite waits.

With Postgres it does nothing.
"""

import sqlite3
import sys
from typing import Any

from sqlalchemy import Dialect, Engine, event


class _Cursor(sqlite3.Cursor):
    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        try:
            return super().execute("BEGIN IMMEDIATE" if statement == "BEGIN DEFERRED" else statement, *parameters)
        except sqlite3.Error:
            self.close()  # in the connection's own thread, which runs nothing else
            raise


class _Connection(sqlite3.Connection):
    def cursor(self, factory: type[sqlite3.Cursor] = _Cursor) -> sqlite3.Cursor:  # type: ignore[override]
        return super().cursor(factory)


@event.listens_for(Engine, "do_connect")
def _connect(dialect: Dialect, _record: Any, _arguments: Any, options: dict[str, Any]) -> None:
    if dialect.driver == "aiosqlite":
        options["factory"] = _Connection


def create_app() -> Any:
    """Prefect's application, for `uvicorn --factory`."""
    from prefect.server.api.server import create_app

    return create_app()


if __name__ == "__main__":
    from prefect.cli import app

    sys.argv[1:1] = ["--no-prompt", "server", "start"]
    app()
