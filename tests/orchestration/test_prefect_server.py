"""Prefect's server on SQLite: no transaction is refused, and a statement that failed holds up nothing."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from waiting import PATIENCE

import flows.servers.sqlite_server  # noqa: F401 it is what is tested: engines that connect from here on

INSERT, COUNT = "INSERT INTO runs VALUES (:name)", "SELECT count(*) FROM runs"


@asynccontextmanager
async def engine_of(database: AioSqliteConfiguration) -> AsyncIterator[AsyncEngine]:
    engine = await database.engine()
    async with engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE runs (name TEXT)")
    yield engine
    await engine.dispose()


@pytest.fixture
def database(tmp_path: Path) -> AioSqliteConfiguration:
    return AioSqliteConfiguration(f"sqlite+aiosqlite:///{tmp_path / 'server.db'}")


def once(connection: AsyncConnection) -> Awaitable:
    return connection.exec_driver_sql(INSERT, {"name": "other"})


def several(connection: AsyncConnection) -> Awaitable:
    return connection.exec_driver_sql(INSERT, [{"name": "other"}, {"name": "another"}])


@pytest.mark.parametrize(("insert", "num_rows"), [(once, 2), (several, 3)])
def test_a_failed_statement_is_let_go_of_before_its_connection_waits_for_another_transaction(
    database: AioSqliteConfiguration, insert: Callable[[AsyncConnection], Awaitable], num_rows: int
) -> None:
    async def scenario() -> int:
        async with engine_of(database) as engine, engine.connect() as one, engine.connect() as other:
            await one.exec_driver_sql("BEGIN IMMEDIATE")
            await one.exec_driver_sql(INSERT, {"name": "one"})
            await other.exec_driver_sql("PRAGMA busy_timeout = 0")
            failed = []
            try:
                await insert(other)
            except OperationalError as error:
                failed.append(error)
            assert "database is locked" in str(failed[0])
            await other.exec_driver_sql(f"PRAGMA busy_timeout = {1000 * PATIENCE}")
            waiting = asyncio.create_task(insert(other))
            await asyncio.wait([waiting], timeout=0.5)  # its thread waits for the lock by now
            failed.clear()
            gc.collect()  # with the traceback goes the cursor
            await one.commit()
            await waiting  # else: database is locked
            return (await other.exec_driver_sql(COUNT)).scalar_one()

    assert asyncio.run(scenario()) == num_rows


def test_a_transaction_that_reads_first_and_then_writes_is_not_refused_for_what_another_wrote(
    database: AioSqliteConfiguration,
) -> None:
    async def insert(session: AsyncSession, name: str) -> None:
        async with database.begin_transaction(session):
            await session.execute(text(COUNT))
            await asyncio.sleep(0.1)
            await session.execute(text(INSERT), {"name": name})  # else: database is locked

    async def scenario() -> int:
        async with engine_of(database) as engine, AsyncSession(engine) as one, AsyncSession(engine) as other:
            await asyncio.gather(insert(one, "one"), insert(other, "other"))
            return (await one.execute(text(COUNT))).scalar_one()

    assert asyncio.run(scenario()) == 2


def test_a_session_within_a_transaction_that_wrote_reads_at_once_what_was_there_before(
    database: AioSqliteConfiguration,
) -> None:
    """As where a work queue is paused: the event that says so reads its work pool."""

    async def scenario() -> int:
        async with engine_of(database) as engine, AsyncSession(engine) as one, engine.connect() as within:
            await within.exec_driver_sql("PRAGMA busy_timeout = 0")
            await within.rollback()
            async with database.begin_transaction(one):
                await one.execute(text(INSERT), {"name": "one"})
                return (await within.exec_driver_sql(COUNT)).scalar_one()

    assert asyncio.run(scenario()) == 0
