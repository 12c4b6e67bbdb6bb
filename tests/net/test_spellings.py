"""Fifty thousand spellings of addresses inside: whatever a URL looks like, no connection goes there."""

import asyncio
import ipaddress
import random
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from prefect_imagegen.net import fetch
from prefect_imagegen.net.fetch import ReferenceFetcher
from prefect_imagegen.net.guard import FetchError, FetchPolicy
from tests.net.conftest import FakeTime

pytestmark = pytest.mark.anyio
COUNT, AT_ONCE = 50_000, 200
INSIDE = [
    *("127.0.0.1", "127.0.0.53", "127.255.255.254", "10.0.0.8", "172.16.3.4", "192.168.1.1", "169.254.169.254"),
    *("100.64.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "168.63.129.16", "192.0.0.192", "198.18.0.1"),
    *("::1", "fe80::1", "fc00::7", "fd00:ec2::254", "fec0::1", "::", "ff02::1"),
]
NETWORKS = [
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3"),
        *("::/128", "::1/128", "::ffff:0:0/96", "64:ff9b::/96", "2002::/16", "fc00::/7", "fe80::/10", "fec0::/10"),
        "ff00::/8",
    )
]
"""Written out here, not taken from the guard: what must never be connected to. Forms of IPv6 that hold an IPv4 address
may be reached where that address is public."""
EMBEDDING = [ipaddress.ip_network(network) for network in ("::ffff:0:0/96", "64:ff9b::/96", "2002::/16")]
PUBLIC = "93.184.216.34"
NAMED = ["127.0.0.1", "10.0.0.8", "::1"]
"""What other names than those of numbers resolve to."""
DIGITS = {digit: [digit, chr(0xFF10 + int(digit)), chr(0x1D7CE + int(digit))] for digit in "0123456789"}
for number in range(1, 10):
    DIGITS[str(number)].append(chr(0x2460 + number - 1))
DOTS = [".", "\u3002", "\uff0e", "\uff61"]


def numeric(address: str, chance: random.Random) -> str:
    """An IPv4 address in one of the spellings that name services and C libraries take."""
    octets = [int(part) for part in address.split(".")]
    whole = int.from_bytes(bytes(octets))
    radix: list[Callable[[int], str]] = [str, "0{:o}".format, "0x{:x}".format, "0X{:X}".format]
    forms = [
        address,
        ".".join(chance.choice(radix)(octet) for octet in octets),
        chance.choice(radix)(whole),
        f"{chance.choice(radix)(octets[0])}.{chance.choice(radix)(whole & 0xFFFFFF)}",
        f"{octets[0]}.{octets[1]}.{chance.choice(radix)(whole & 0xFFFF)}",
        f"{address}.",
    ]
    return chance.choice(forms)


def six(address: str, chance: random.Random) -> str:
    """An address as IPv6, in brackets."""
    if ":" not in address:
        low = f"{int(ipaddress.IPv4Address(address)):08x}"
        pair = f"{low[:4]}:{low[4:]}"
        address = chance.choice([f"::ffff:{address}", f"::ffff:{pair}", f"64:ff9b::{pair}", f"2002:{pair}::"])
    long = ipaddress.IPv6Address(address).exploded
    form = chance.choice([address, address.upper(), long])
    return f"[{form}{chance.choice(['', '', '%251', '%25eth0', '%1'])}]"


def spelled(chance: random.Random) -> str:
    """A URL that tries to lead inside."""
    address = chance.choice(INSIDE)
    if ":" in address or chance.random() < 0.25:
        host = six(address, chance)
    else:
        host = numeric(address, chance)
        if chance.random() < 0.3:
            host = "".join(chance.choice(DIGITS.get(char, [char])) for char in host)
        if chance.random() < 0.3:
            host = "".join(chance.choice(DOTS) if char == "." else char for char in host)
    if chance.random() < 0.2:
        names = ["localhost", "LOCALHOST.", "a.localhost", "rebinding.example", "inside.example", "xn--1-0fa.example"]
        host = chance.choice([*names, "\u24db\u24de\u24d2alhost", f"{address.replace(':', '-')}.inside.example"])
    if chance.random() < 0.05:
        host = "".join(f"%{ord(char):02x}" if char.isalnum() and ord(char) < 128 else char for char in host)
    user = chance.choice(["", "", "", "", "user@", "user:pw@", f"{PUBLIC}@", "shop.example%40", "shop.example\\@", "@"])
    port = chance.choice(["", "", "", ":80", ":8080", ":0", ":443", ":", ":00080", ":\uff18\uff10"])
    blank = chance.choice(["", "", "", "", "\t", "\n", " ", "\u200b", "\u00ad"])
    path = chance.choice(["/", "", "/a.png", "/\\a", "?x=1", "#f", f"/@{PUBLIC}/", "\\..\\a"])
    slashes = chance.choice(["//", "//", "//", "//", "/", "///", "\\\\"])
    return f"{chance.choice(['http', 'https', 'HTTP'])}:{slashes}{user}{blank}{host}{port}{path}"


def is_inside(address: str) -> bool:
    """Whether a connection to an address would be one to the inside."""
    ip = ipaddress.ip_address(address.split("%", maxsplit=1)[0])
    if isinstance(ip, ipaddress.IPv6Address) and any(ip in network for network in EMBEDDING):
        inner = int(ip) >> 80 if ip in EMBEDDING[2] else int(ip)
        return is_inside(str(ipaddress.IPv4Address(inner & 0xFFFFFFFF)))
    return any(ip.version == network.version and ip in network for network in NETWORKS)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every address that a socket is connected to; no connection is made. Names resolve, and change their minds."""
    asked: list[str] = []
    answers = random.Random(1)

    def resolve(host: Any, port: Any, *_: Any, **__: Any) -> list[Any]:
        name = host.decode() if isinstance(host, bytes) else str(host)
        name.encode("idna")  # as the real one does, and fails for what is no name
        try:
            address = socket.inet_ntoa(socket.inet_aton(name))
        except OSError:
            rebinding = [PUBLIC] if answers.random() < 0.5 else [PUBLIC, "127.0.0.1"]
            addresses = (
                rebinding if name.startswith("rebinding") else [answers.choice(["127.0.0.1", "10.0.0.8", "::1"])]
            )
        else:
            addresses = [address]
        kinds = [(socket.AF_INET6 if ":" in address else socket.AF_INET, address) for address in addresses]
        return [
            (kind, socket.SOCK_STREAM, 6, "", (address, port, 0, 0) if kind == socket.AF_INET6 else (address, port))
            for kind, address in kinds
        ]

    connect = asyncio.SelectorEventLoop.sock_connect

    async def refuse(loop: Any, sock: Any, address: Any) -> None:
        if threading.current_thread() is not threading.main_thread():  # Prefect's, in the threads of other tests
            return await connect(loop, sock, address)
        asked.append(str(address[0]))
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", refuse)
    monkeypatch.setattr(fetch, "_TRIES", 2)
    return asked


@pytest.mark.parametrize("seed", range(2))
async def test_no_spelling_leads_inside(seed: int, connections: list[str], fake_time: FakeTime) -> None:
    """A URL that means an address inside, however it is spelled, is refused before a connection is made."""
    chance = random.Random(seed)
    async with ReferenceFetcher(FetchPolicy(), fake_time.records()) as fetcher:

        async def refused(url: str) -> None:
            with pytest.raises(FetchError):
                await fetcher.fetch(url)

        for _ in range(COUNT // AT_ONCE // 2):
            await asyncio.gather(*(refused(spelled(chance)) for _ in range(AT_ONCE)))
    assert [address for address in connections if is_inside(address)] == []
    assert PUBLIC in connections, "what is public is asked: the test would see a connection"


@pytest.mark.parametrize(
    "metadata",
    [
        *("169.254.169.254", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fe80::a9fe"),
        *("fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42", "64:ff9b:1::a9fe:a9fe"),
    ],
)
async def test_where_credentials_lie_is_never_asked(metadata: str, connections: list[str], fake_time: FakeTime) -> None:
    """Where clouds keep credentials is refused in every mode, however it is spelled."""
    chance = random.Random(metadata)
    policy = FetchPolicy(allow_loopback=True, allow_private=True)
    async with ReferenceFetcher(policy, fake_time.records()) as fetcher:
        for _ in range(200):
            host = six(metadata, chance) if ":" in metadata else chance.choice([numeric, six])(metadata, chance)
            with pytest.raises(FetchError):
                await fetcher.fetch(f"http://{host}/latest/meta-data/")
    assert set(connections) <= set(NAMED), "what is no number is a name, and leads elsewhere"
