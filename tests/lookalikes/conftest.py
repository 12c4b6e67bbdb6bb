"""A look-alike in front of the real S3 server, and the options of a client for it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .proxy import Fault, S3Proxy


@dataclass(frozen=True, slots=True)
class LookAlike:
    """A running proxy, the address of a fresh prefix behind it, and what s3fs needs to get there."""

    proxy: S3Proxy
    url: str
    options: dict[str, Any]


@pytest.fixture
def look_alike(s3, tmp_path: Path) -> Iterator[Callable[..., LookAlike]]:
    """Start a look-alike: `look_alike(RefusesChecksums(501, "NotImplemented"), tls=True)`."""
    running: list[S3Proxy] = []

    def start(*faults: Fault, tls: bool = False, **options: Any) -> LookAlike:
        users = {"writer": "writer-secret", "reader": "reader-secret"}
        proxy = S3Proxy(s3.endpoint, users, faults, tmp_path if tls else None).start()
        running.append(proxy)
        verify = {"client_kwargs": {"verify": str(proxy.certificate)}} if proxy.certificate else {}
        return LookAlike(proxy, s3.url(), {**s3.options, "endpoint_url": proxy.url, **verify, **options})

    yield start
    for proxy in running:
        proxy.stop()
