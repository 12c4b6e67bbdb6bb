"""What a flow of a user's own passes to our tasks, secrets and rows included, stays in its process."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from tests.support import prefect_homes
from tests.support.planted import files_of, leaks

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(600)]

PLANTED = {
    "the API key": "apikey/plant+0001==",
    "a prompt": "a prompt about plant 0002",
    "an option of the store": "store/plant+0003",
}
_FLOWS = """
import os
import sys
from functools import partial

from prefect import flow
from pydantic import SecretStr

from prefect_imagegen import ProviderSettings, RefusedError, StoreSettings
from prefect_imagegen.flows import generate_images
from prefect_imagegen.tasks import RunSpec, finish_run, generate_shard, open_session, plan_run

manifest, store, url = sys.argv[1:]
account = ProviderSettings(base_url=url, api_key=SecretStr(os.environ["SEGMIND_API_KEY"]))


@flow(name="a flow of my own")
async def own_flow():
    try:
        await plan_run(RunSpec(manifest + ".absent", StoreSettings(store), account))
    except RefusedError as error:
        print("as it should be:", error.kind)
    planned_run = await plan_run(RunSpec(manifest, StoreSettings(store, {"secret": os.environ["PLANTED"]}), account))
    async with open_session(planned_run) as session:
        await session.for_each_shard(partial(generate_shard, session))
        broken = await finish_run(session, None, return_state=True)
        assert broken.is_failed(), broken
        result = await finish_run(session, 1.0)
    assert result.generated == 3, result
    return result.run_id


import asyncio

asyncio.run(own_flow())
os.environ["SEGMIND_BASE_URL"] = url
assert generate_images(manifest, store)["reused"] == 3
"""


def rows_of(database: Path) -> Iterator[tuple[str, bytes]]:
    """Every table of a database, row by row: texts that are too long for a page lie in pieces in the file."""
    connection = sqlite3.connect(database)
    try:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                yield f"the table {table}", repr(row).encode()
    finally:
        connection.close()


def test_prefect_keeps_nothing_of_what_tasks_are_given(tmp_path: Path, prefect_home: Path) -> None:
    """Neither Prefect's database nor any log has the key, a prompt or a store's secret that tasks got as arguments.

    Also where a task refuses, and where one fails with a traceback.
    """
    manifest = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": [f"{PLANTED['a prompt']}, {number}" for number in range(3)]}), manifest)
    settings = GatewaySettings(api_key=SecretStr(PLANTED["the API key"]), price_usd=0.01)
    with EmbeddedGateway(settings) as gateway:
        with prefect_homes.serving(prefect_home) as api:
            environment = os.environ | {
                "PREFECT_API_URL": api,
                "PREFECT_HOME": str(tmp_path / "client-home"),
                "PREFECT_LOGGING_LEVEL": "DEBUG",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "SEGMIND_API_KEY": PLANTED["the API key"],
                "PLANTED": PLANTED["an option of the store"],
            }
            words = [sys.executable, "-c", _FLOWS, str(manifest), str(tmp_path / "store"), gateway.url]
            ended = subprocess.run(words, env=environment, capture_output=True, check=False, timeout=300)
        assert ended.returncode == 0, ended.stderr.decode()
        assert len(gateway.account_state.billed) == 3
    sources = [
        *rows_of(prefect_home / "prefect.db"),
        *files_of(prefect_home),
        *files_of(tmp_path / "client-home"),
        ("the output", ended.stdout + ended.stderr),
    ]
    text = b"".join(data for _, data in sources)
    for recorded in (b"a flow of my own", b"generate-shard", b"as it should be", b"Traceback"):
        assert recorded in text
    assert leaks(sources, PLANTED) == []
