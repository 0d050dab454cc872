"""The Prefect server of a flow that is run in a terminal."""

import httpx
from waiting import PATIENCE

from flows.servers import local


def test_a_local_server_looks_for_migrations_until_its_database_is_made(tmp_path, monkeypatch):
    home = tmp_path / "prefect"
    home.mkdir()
    monkeypatch.setenv("PREFECT_HOME", str(home))
    monkeypatch.setenv("LORI_DIR", str(tmp_path))
    monkeypatch.delenv("PREFECT_SERVER_DATABASE_MIGRATE_ON_START", raising=False)
    start, looked = local.start, []

    def noted(*arguments, env, **options):
        looked.append(env.get("PREFECT_SERVER_DATABASE_MIGRATE_ON_START") != "false")
        return start(*arguments, env=env, **options)

    monkeypatch.setattr(local, "start", noted)
    for _ in range(2):
        server = local.LocalServer()
        server.wait()
        assert httpx.post(f"{server.url}/flow_runs/count", timeout=PATIENCE).json() == 0
        server._stop()
    for file in home.glob("prefect.db*"):
        file.unlink()
    server = local.LocalServer()
    server.wait()
    assert httpx.post(f"{server.url}/flow_runs/count", timeout=PATIENCE).json() == 0, "it is made again"
    server._stop()
    assert looked == [True, False, True]
