"""What goes wrong between this machine and a picture host, in words, and whether it may pass."""

import re
import socket
from dataclasses import dataclass

import aiohttp

from prefect_imagegen.core.redact import redact

_TRIES = 5
_FEW_TRIES = 2
"""Of what takes long to fail, or hardly ever passes."""
_NO_SUCH_NAME = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA", "EAI_FAIL") if hasattr(socket, name)
)


_PACKED = re.compile(r"Can not decode content-encoding: (\w+) \(")
"""What aiohttp says where the package for an encoding is missing (`brotli (br). Please install ...`)."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A problem, as the end of a sentence that begins with the host's name, and how often it is worth a try.

    One try means that it will not pass; `remedy` is for that.
    """

    problem: str
    tries: int = 1
    remedy: str = "Check the address."

    @property
    def is_passing(self) -> bool:
        """Whether it may be otherwise later."""
        return self.tries > 1


def trouble_of(error: BaseException) -> Trouble:
    """What an exception of the transport means."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return _of_name(error)
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.ClientConnectorCertificateError):
        return _of_tls(error)
    if isinstance(error, TimeoutError):  # aiohttp's own are of this kind too
        return Trouble("did not answer in time", _FEW_TRIES)
    if isinstance(error, aiohttp.ClientConnectorError):
        reason = error.os_error.strerror or type(error.os_error).__name__
        return Trouble(f"cannot be connected to ({redact(reason)}); is the address right?", _FEW_TRIES + 1)
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | OSError):
        return Trouble("broke off its answer", _TRIES)
    return _of_nonsense(error)


def _of_nonsense(error: BaseException) -> Trouble:
    if (packed := _PACKED.search(str(error))) is not None:
        return _of_packing(packed[1])
    is_nonsense = isinstance(error, aiohttp.ClientResponseError)
    said = (
        "does not answer in HTTP" if is_nonsense else f"cannot be asked ({redact(f'{type(error).__name__} {error}')})"
    )
    return Trouble(said, remedy="Check the address, and its port.")


def _of_packing(name: str) -> Trouble:
    return Trouble(
        f"packs its answer as {name}, which it was not asked for and which cannot be unpacked here",
        remedy=f"Its host should send pictures as they are; else install a package that unpacks {name}, or copy the"
        " picture to another place.",
    )


def _of_tls(error: aiohttp.ClientSSLError | aiohttp.ClientConnectorCertificateError) -> Trouble:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "") or "it is not trusted"
        return Trouble(
            f"has no valid certificate ({redact(reason)})",
            remedy="Its host must mend that; else copy the picture to where it can be read safely.",
        )
    if "EOF" in str(error):
        return Trouble("broke off the connection", _TRIES)
    return Trouble(
        f"makes no secure connection ({redact(str(error.os_error))})",
        remedy="Check the address: is it https, and the right port?",
    )


def _of_name(error: aiohttp.ClientConnectorDNSError) -> Trouble:
    if error.os_error.errno in _NO_SUCH_NAME:
        return Trouble("does not exist: no such name is known", remedy="Check the host's name in the address.")
    return Trouble("has a name that could not be looked up just now", _FEW_TRIES)
