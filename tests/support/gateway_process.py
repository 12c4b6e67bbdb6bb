"""A standing gateway in a process of its own, whose memory and whose log are its own."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CODE = """
import os, resource
from pydantic import SecretStr
from prefect_imagegen.gateway.limits import Limits
from prefect_imagegen.gateway.server import run_server
from prefect_imagegen.gateway.settings import GatewaySettings
run_server(GatewaySettings({settings}), "127.0.0.1", 0, lambda url: print(url, flush=True))
"""


@dataclass
class StandingGateway:
    """A process that serves at `url`; what it logs goes to the file `log`."""

    process: "subprocess.Popen[str]"
    url: str
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def peak(self) -> int:
        """Bytes of memory that it has used at most; Linux only."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        match = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert match is not None
        return 1024 * int(match[1])


@contextmanager
def standing_gateway(folder: Path, settings: str = "") -> Iterator[StandingGateway]:
    """A gateway with settings that are given as the code of their arguments."""
    log = folder / "gateway.log"
    code = _CODE.format(settings=settings)
    with (
        log.open("w", encoding="utf-8") as sink,
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=sink, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            yield StandingGateway(process, process.stdout.readline().strip(), log)
        finally:
            process.kill()
