"""Ports on loopback that are free now."""

import secrets
import socket


def free_port(below: int = 65_000) -> int:
    """A port that is free now."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < below:
            return port


def ports_of_seaweedfs(count: int) -> list[int]:
    """Ports whose gRPC siblings (10,000 above) are free too, as SeaweedFS derives those itself.

    All lie below the ports that systems give to outgoing connections (32,768 and up on Linux): one of those could be
    taken before the server, which needs a second to start, listens.
    """
    ports: list[int] = []
    candidate = 10_000 + secrets.randbelow(9_000)
    while len(ports) < count:
        candidate += 7
        with socket.socket() as low, socket.socket() as high:
            try:
                low.bind(("127.0.0.1", candidate))
                high.bind(("127.0.0.1", candidate + 10_000))
            except OSError:
                continue
        ports.append(candidate)
    return ports
