"""Network errors between this machine and a host of pictures: a message, a remedy, and whether it may pass."""

import re
import socket
from dataclasses import dataclass

import aiohttp

from prefect_imagegen.core.redact import redact

_TRIES = 5
_FEW_TRIES = 2
"""Tries for errors that take long to show, or that hardly ever pass."""
_NO_SUCH_NAME = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA", "EAI_FAIL") if hasattr(socket, name)
)


_UNREADABLE_ENCODING = re.compile(r"Can not decode content-encoding: (\w+) \(")
"""aiohttp's message where the package for an encoding is missing (`brotli (br). Please install ...`)."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A network problem, and how many tries are worth it.

    `problem` completes a sentence that begins with the host's name. One try means that it will not pass; then `remedy`
    is shown.
    """

    problem: str
    tries: int = 1
    remedy: str = "Check the address."

    @property
    def is_passing(self) -> bool:
        """Whether another try may succeed."""
        return self.tries > 1


def trouble_of(error: BaseException) -> Trouble:
    """The Trouble behind an exception of the transport."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return _dns_trouble(error)
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.ClientConnectorCertificateError):
        return _tls_trouble(error)
    if isinstance(error, TimeoutError):  # aiohttp's time-outs are TimeoutErrors too
        return Trouble("did not answer in time", _FEW_TRIES)
    if isinstance(error, aiohttp.ClientConnectorError):
        reason = error.os_error.strerror or type(error.os_error).__name__
        return Trouble(f"cannot be connected to ({redact(reason)}); is the address right?", _FEW_TRIES + 1)
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | OSError):
        return Trouble("broke off its answer", _TRIES)
    return _other_trouble(error)


def _other_trouble(error: BaseException) -> Trouble:
    if (encoding := _UNREADABLE_ENCODING.search(str(error))) is not None:
        return _encoding_trouble(encoding[1])
    is_nonsense = isinstance(error, aiohttp.ClientResponseError)
    problem = (
        "does not answer in HTTP" if is_nonsense else f"cannot be asked ({redact(f'{type(error).__name__} {error}')})"
    )
    return Trouble(problem, remedy="Check the address, and its port.")


def _encoding_trouble(name: str) -> Trouble:
    return Trouble(
        f"packs its answer as {name}, which it was not asked for and which cannot be unpacked here",
        remedy=f"Its host should send pictures as they are; else install a package that unpacks {name}, or copy the"
        " picture to another place.",
    )


def _tls_trouble(error: aiohttp.ClientSSLError | aiohttp.ClientConnectorCertificateError) -> Trouble:
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


def _dns_trouble(error: aiohttp.ClientConnectorDNSError) -> Trouble:
    if error.os_error.errno in _NO_SUCH_NAME:
        return Trouble("does not exist: no such name is known", remedy="Check the host's name in the address.")
    return Trouble("has a name that could not be looked up just now", _FEW_TRIES)
