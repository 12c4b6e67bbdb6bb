"""Secrets planted in every entrance of the commands and of the Python face come out nowhere."""

import json
import logging
import os
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.cli.exit import CommandExit
from prefect_imagegen.cli.main import cli
from prefect_imagegen.core.errors import ImagegenError
from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.object_store import close_connections
from tests.support import planted, prefect_homes, warm_python
from tests.support.command import MODULE

REFERENCES = ("--reference-identity", "content", "--allow-private-references", "--keep-references")


@dataclass
class World:
    """A host of pictures, an API that repeats what it was sent, a store in a bucket, and who runs the commands."""

    folder: Path
    home: Path
    host: planted.PictureHost
    gateway: EmbeddedGateway
    s3: object
    store: str

    @property
    def environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "SEGMIND_"))}
        return (
            own
            | planted.ENVIRONMENT
            | {
                "PREFECT_HOME": str(self.home),
                "PREFECT_IMAGEGEN_CACHE": str(self.folder / "cache"),
                "DO_NOT_TRACK": "1",
                "S3_KEY": self.s3.options["key"],
                "S3_SECRET": self.s3.options["secret"],
            }
        )

    @property
    def store_words(self) -> tuple[str, ...]:
        options = {
            "key": "env:S3_KEY",
            "secret": "env:S3_SECRET",
            "endpoint_url": self.s3.options["endpoint_url"],
            "config_kwargs": json.dumps({"user_agent_extra": "env:PLANTED_NESTED"}),
        }
        words = [word for name, value in options.items() for word in ("--storage-option", f"{name}={value}")]
        return ("--store", self.store, *words)

    @property
    def manifest_words(self) -> tuple[str, ...]:
        option = json.dumps({"headers": {"x-token": "env:PLANTED_OPTION"}})
        return (self.host.manifest(), "--manifest-storage-option", f"client_kwargs={option}")

    def run(self, *words: str, **more: str) -> tuple[int, list[tuple[str, bytes]]]:
        """Run a command: its exit code, and what it and its children said."""
        with (self.folder / "stdout").open("wb") as out, (self.folder / "stderr").open("wb") as err:
            environment = self.environment | more
            process = warm_python.start("-m", MODULE, *words, cwd=self.folder, env=environment, stdout=out, stderr=err)
            lines: dict[bytes, str] = {}
            while process.poll() is None:
                lines |= {line: name for name, line in planted.command_lines(process.pid)}
                time.sleep(0.1)
        said = [(name, (self.folder / name).read_bytes()) for name in ("stdout", "stderr")]
        return process.returncode, said + [(name, line) for line, name in lines.items()]

    def stored(self) -> list[tuple[str, bytes]]:
        """Every object of the store."""
        fs = fsspec.filesystem("s3", **self.s3.options, skip_instance_cache=True, use_listings_cache=False)
        try:
            return list(planted.objects_of(fs, self.store.removeprefix("s3://")))
        finally:
            close_connections(fs)


@pytest.fixture
def world(tmp_path: Path, prefect_home: Path, s3) -> Iterator[World]:
    echo = Fault(fault="failed", prompt_contains="forbidden", text=planted.ECHO)
    settings = GatewaySettings(
        api_key=SecretStr(planted.KEY), allow_loopback=True, price_usd=0.01, faults=FaultScript(faults=[echo])
    )
    with planted.PictureHost() as host, EmbeddedGateway(settings) as gateway:
        yield World(tmp_path, prefect_home, host, gateway, s3, s3.url())


def refuse(world: World, *calls: str) -> None:
    """From now on the API refuses those calls, and repeats what it was sent."""
    rule = Fault(fault="json_error", status=401, on=list(calls), body={"error": planted.ECHO})
    world.gateway.account_state.settings.faults = FaultScript(faults=[rule])


SECRETS = planted.PLANTED | {"the secret of the store": "writer-secret"}


@pytest.mark.s3
@pytest.mark.prefect
@pytest.mark.timeout(600)
def test_commands_tell_no_secret(world: World) -> None:
    """No secret of any entrance comes out of a command: not in what it says, starts, stores, or tells Prefect.

    The entrances: a signed manifest, options at any depth, signed references, the key, the proxy, and an API and a
    host that repeat all that they were sent. The command line of the command itself is its user's.
    """
    common = (*world.store_words, "--base-url", world.gateway.url)
    code, said = world.run("plan", *world.manifest_words, *common, *REFERENCES)
    assert (code, planted.leaks(said, SECRETS)) == (0, []), said
    code, said = world.run("generate", *world.manifest_words, *common, *REFERENCES, "--prefect", "on")
    assert (code, planted.leaks(said, SECRETS)) == (1, []), said
    assert len(world.gateway.account_state.billed) == len(planted.SIGNED)
    cup = world.folder / "cup.csv"
    cup.write_text("prompt\na cup\n")
    refuse(world, "submit")
    # The first had a server of its own; these have one that goes on.
    with prefect_homes.serving(world.home) as api:
        code, said = world.run("generate", str(cup), *common, "--prefect", "on", PREFECT_API_URL=api)
        assert (code, planted.leaks(said, SECRETS)) == (3, []), said
        refuse(world, "submit", "credits", "history")
        for words, expected in {
            ("generate", str(cup), *common, "--prefect", "on"): 2,
            ("doctor", "--deep", *common): 1,
            ("status", *world.store_words): 0,
        }.items():
            code, said = world.run(*words, PREFECT_API_URL=api)
            assert (code, planted.leaks(said, SECRETS)) == (expected, []), (words, said)
    stored = world.stored()
    assert any("of images/" in name or "/images/" in name for name, _ in stored)
    assert planted.leaks(stored, SECRETS) == []
    assert planted.leaks(planted.files_of(world.home), SECRETS) == []
    # The cache of this machine keeps signed references, which are to be read again; it is its user's alone.
    others = {name: secret for name, secret in SECRETS.items() if secret not in "".join(planted.SIGNED)}
    assert planted.leaks(planted.files_of(world.folder / "cache"), others) == []
    assert all(path.stat().st_mode & 0o077 == 0 for path in (world.folder / "cache").rglob("references.sqlite"))


@pytest.mark.s3
@pytest.mark.prefect
@pytest.mark.timeout(400)
def test_a_pool_tells_no_key(world: World, images_engine: Callable[..., Any]) -> None:
    """The key of a pool and that of one worker come out nowhere, and one that a worker refuses neither."""
    shared, own, strange = (images_engine("sglang") for _ in range(3))
    shared.key, own.key = planted.PLANTED["the key of a pool"], planted.PLANTED["the key of a worker"]
    strange.key = "another"
    cup = world.folder / "cups.csv"
    cup.write_text("prompt\n" + "\n".join(f"cup {number}" for number in range(8)))
    endpoints = (shared.endpoint, f"{own.endpoint}#key=env:PLANTED_WORKER", strange.endpoint)
    words = ("--backend", "pool", *(word for endpoint in endpoints for word in ("--endpoint", endpoint)))
    code, said = world.run("generate", str(cup), *world.store_words, *words, "--prefect", "on")
    assert (code, planted.leaks(said, SECRETS)) == (0, []), said
    assert set(shared.keys) == {f"Bearer {shared.key}"}
    assert set(own.keys) == {f"Bearer {own.key}"}
    code, said = world.run("doctor", *world.store_words, *words)
    assert (code, planted.leaks(said, SECRETS)) == (1, []), said
    assert planted.leaks([*world.stored(), *planted.files_of(world.home)], SECRETS) == []


SIGNATURE, OPTION = planted.PLANTED["the signature of a manifest"], planted.PLANTED["an option"]
REFUSED = {
    "a signed manifest that is not there": ("http://127.0.0.1:9/gone.csv?sig=" + SIGNATURE, "--store", "out"),
    "a manifest's password": (f"ftp://me:{OPTION}@127.0.0.1:9/a.csv", "--store", "out"),
    "a store's password": ("cup.csv", "--store", f"s3://me:{OPTION}@images/x"),
    "a store's user": ("cup.csv", "--store", f"gs://{SIGNATURE}@images/x"),
    "an API's password": ("cup.csv", "--store", "out", "--base-url", f"http://me:{planted.KEY}@127.0.0.1:9"),
    "an API's query": ("cup.csv", "--store", "out", "--base-url", f"http://127.0.0.1:9?api_key={SIGNATURE}"),
    "an API's port": ("cup.csv", "--store", "out", "--base-url", "http://h:99999"),
    "a backend": ("cup.csv", "--store", "out", "--backend", f"http://me:{OPTION}@h"),
    "a worker's user": ("cup.csv", "--store", "out", "--backend", "pool", "--endpoint", f"openai+http://{OPTION}@h:1"),
    "a worker's key": (
        "cup.csv",
        "--store",
        "out",
        "--backend",
        "pool",
        "--endpoint",
        f"openai+http://h:1#key={OPTION}",
    ),
    "an option": ("cup.csv", "--store", "out", "--storage-option", f"secret={OPTION}"),
    "a nested option": ("cup.csv", "--store", "out", "--storage-option", f'x={{"a": [{{"token": "{OPTION}"}}]}}'),
    "a manifest's option": ("cup.csv", "--store", "out", "--manifest-storage-option", f"password={OPTION}"),
    "a reference's option": ("cup.csv", "--store", "out", "--reference-storage-option", f"sas_token={OPTION}"),
}


@pytest.mark.parametrize("words", REFUSED.values(), ids=REFUSED)
def test_a_refusal_repeats_no_secret(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A command that is refused for what it was given says why, and not the secret that it was given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEGMIND_API_KEY", raising=False)
    Path("cup.csv").write_text("prompt\na cup\n")
    with pytest.raises(CommandExit) as caught:
        cli(["plan", "--json", *words], standalone_mode=False)
    out, err = capfd.readouterr()
    assert caught.value.code == 2
    assert "refused" in err
    assert "internal error" not in err
    assert planted.leaks([("stdout", out.encode()), ("stderr", err.encode())]) == []


@pytest.mark.s3
def test_the_python_face_tells_no_secret(
    world: World, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """`prefect_imagegen.generate` tells no secret in its result, its errors, its logs or the store."""
    caplog.set_level(logging.INFO)
    backend = ProviderSettings(base_url=world.gateway.url, api_key=SecretStr(planted.KEY))
    options = {"storage_options": world.s3.options, "reference_identity": "content", "allow_private_references": True}
    result = prefect_imagegen.generate(world.host.manifest(), world.store, backend=backend, **options)
    assert (result.generated, result.failed) == (len(planted.SIGNED), 1)
    said = [("the result", repr((result, result.as_dict(), backend)).encode())]
    refuse(world, "submit")
    cup = world.folder / "cup.csv"
    cup.write_text("prompt\na cup\n")
    again = prefect_imagegen.generate(cup, world.store, backend=backend, **options)
    assert again.stop_reason == "auth"
    said.append(("the second result", repr((again, again.as_dict())).encode()))
    for manifest, base_url in (
        (f"{world.host.url}/gone.csv?sig={planted.PLANTED['the signature of a manifest']}", world.gateway.url),
        (str(world.folder / "none.csv"), f"http://me:{planted.KEY}@127.0.0.1:9"),
    ):
        with pytest.raises(ImagegenError) as caught:
            prefect_imagegen.generate(
                manifest,
                world.store,
                backend=ProviderSettings(base_url=base_url, api_key=SecretStr(planted.KEY)),
                **options,
            )
        said.append(("an error", str(caught.value).encode()))
    said += [("the log", caplog.text.encode()), ("the console", "".join(capfd.readouterr()).encode())]
    assert planted.leaks(said, SECRETS) == []
    assert planted.leaks(world.stored(), SECRETS) == []


def test_the_search_finds_what_is_hidden(tmp_path: Path) -> None:
    """A secret is found in every spelling: in text, in a query, in base64 at any offset, and inside of files."""

    for secret in planted.PLANTED.values():
        coded = [b64encode(f"{'x' * shift}{secret}{shift}".encode()).decode() for shift in range(4)]
        for data in (secret, quote(secret, safe=""), *coded):
            assert len(planted.leaks([("here", data.encode())])) == 1, data
    pq.write_table(pa.table({"text": [planted.KEY] * 9}), tmp_path / "a.parquet", compression="zstd")
    texts = PngImagePlugin.PngInfo()
    texts.add_text("note", planted.KEY, zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=texts)
    assert len(planted.leaks(planted.files_of(tmp_path))) >= 2
    assert planted.leaks([("here", b"nothing of the kind")]) == []
