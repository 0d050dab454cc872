"""`prefect server start` for workers that share its SQLite file: what writes waits for its turn and stalls nobody.

Two things of Prefect 3.8 are mended in the server's own process, which with `--background` or `--workers` is another:

- Its transactions begin as readers. One that then writes is refused at once ("database is locked") if another has
  written since: a client tries again seconds later, an event is lost after some tries. Here they begin as writers
  (https://www.sqlite.org/lang_transaction.html), all but the sessions that are opened within one.
- Before Python 3.12, a cursor keeps its failed statement until the cursor is freed, and freeing it waits for whatever
  its connection is doing. The event loop frees it. If the connection is waiting for a transaction at that moment,
  nobody can end that transaction: the server answers nothing for the minute that SQLite waits. Here a cursor is closed
  when its statement fails. From 3.12 on Python releases the statement itself: `_Cursor` and `_Connection` can be
  deleted with Python 3.11.

With Postgres it does nothing.
"""

import sqlite3
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration
from sqlalchemy import Dialect, Engine, event
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


@asynccontextmanager
async def _begin_transaction(  # each as if it were `with_for_update`
    self: AioSqliteConfiguration,  # noqa: ARG001
    session: AsyncSession,
    with_for_update: bool = False,  # noqa: ARG001
) -> AsyncGenerator[AsyncSessionTransaction, None]:
    async with session.begin() as transaction:
        token = SQLITE_BEGIN_MODE.set("IMMEDIATE")
        try:
            await session.connection()
        finally:
            # Not as long as the transaction: a session within it that only reads would wait for what it is part of
            SQLITE_BEGIN_MODE.reset(token)
        yield transaction


class _Cursor(sqlite3.Cursor):
    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        with _closed_by_failure(self):
            return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        with _closed_by_failure(self):
            return super().executemany(*arguments)


@contextmanager
def _closed_by_failure(cursor: sqlite3.Cursor) -> Iterator[None]:
    """In the connection's own thread, which runs nothing else then."""
    try:
        yield
    except Exception:
        cursor.close()
        raise


class _Connection(sqlite3.Connection):
    def cursor(self, factory: type[sqlite3.Cursor] = _Cursor) -> sqlite3.Cursor:  # type: ignore[override]
        return super().cursor(factory)


@event.listens_for(Engine, "do_connect")
def _connect(dialect: Dialect, _record: Any, _arguments: Any, options: dict[str, Any]) -> None:
    if dialect.driver == "aiosqlite":
        options["factory"] = _Connection


AioSqliteConfiguration.begin_transaction = _begin_transaction


def create_app() -> Any:
    """Prefect's application, for `uvicorn --factory`."""
    from prefect.server.api.server import create_app

    return create_app()


if __name__ == "__main__":
    from prefect.cli import app

    sys.argv[1:1] = ["--no-prompt", "server", "start"]
    app()
