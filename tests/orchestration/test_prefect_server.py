"""Prefect's server on SQLite: no transaction is refused, and a statement that failed holds up nothing."""

import asyncio
import gc
from pathlib import Path

from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

import flows.prefect_server  # noqa: F401 it is what is tested: engines that connect from here on


def test_a_failed_statement_is_let_go_of_before_its_connection_waits_for_another_transaction(tmp_path: Path) -> None:
    async def scenario() -> int:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'server.db'}")
        async with engine.connect() as one, engine.connect() as other:
            await one.exec_driver_sql("PRAGMA journal_mode = WAL")
            await one.exec_driver_sql("CREATE TABLE runs (name TEXT)")
            await one.commit()
            await one.exec_driver_sql("INSERT INTO runs VALUES ('one')")  # it holds the lock for writing
            await other.exec_driver_sql("PRAGMA busy_timeout = 0")
            failed = []
            try:
                await other.exec_driver_sql("INSERT INTO runs VALUES ('other')")
            except OperationalError as error:
                failed.append(error)
            assert "database is locked" in str(failed[0])
            await other.rollback()
            await other.exec_driver_sql("PRAGMA busy_timeout = 8000")
            waiting = asyncio.create_task(other.exec_driver_sql("INSERT INTO runs VALUES ('other')"))
            await asyncio.sleep(0.5)  # its thread waits for the lock by now
            failed.clear()
            gc.collect()  # with the traceback goes the cursor
            await one.commit()
            await waiting  # else: database is locked
            await other.commit()
            count = await other.exec_driver_sql("SELECT count(*) FROM runs")
            return count.scalar_one()

    assert asyncio.run(scenario()) == 2


def test_a_transaction_that_reads_first_and_then_writes_is_not_refused_for_what_another_wrote(tmp_path: Path) -> None:
    """With the sessions and transactions of Prefect's server."""
    insert = text("INSERT INTO runs SELECT count(*) FROM runs")

    async def scenario() -> list[int]:
        database = AioSqliteConfiguration(f"sqlite+aiosqlite:///{tmp_path / 'server.db'}")
        engine = await database.engine()
        one, other = [await database.session(engine) for _ in range(2)]
        async with database.begin_transaction(one):
            await one.execute(text("CREATE TABLE runs (number INTEGER)"))

        async def write() -> None:
            async with database.begin_transaction(other):
                await other.execute(insert)

        async with database.begin_transaction(one):
            await one.execute(text("SELECT count(*) FROM runs"))
            writing = asyncio.create_task(write())
            await asyncio.wait([writing], timeout=0.5)
            await one.execute(insert)  # else: database is locked
        await writing
        found = await one.scalars(text("SELECT number FROM runs"))
        await asyncio.gather(one.close(), other.close())
        return list(found)

    assert asyncio.run(scenario()) == [0, 1]
