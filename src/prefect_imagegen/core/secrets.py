"""Detects secrets in options and addresses, so that they are refused where they would be stored or shown. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefect_imagegen.core.redact import has_user
from prefect_imagegen.core.request.references import is_signed

_NAMES = re.compile(
    r"(^|[_-])(key|keys|pwd|sas|auth|jwt)($|[_-])|secret|token|passw|credential|connection_?string|signature|bearer|"
    r"api_?key|account_?key|authorization|cookie",
    re.IGNORECASE,
)
_CONTAINER_FIRST = frozenset({"abfs", "abfss", "az", "adl", "wasb", "wasbs"})
FROM_ENVIRONMENT = "env:"
"""The prefix of a value that names an environment variable."""
_NO_SECRETS = frozenset({"", "anon", "anonymous", "cloud", "google_default", "cache", "browser", "default"})
"""Values of credential options that name a way to get credentials, as gcsfs and adlfs take them, and no secret."""


def secret_option(options: Mapping[str, Any]) -> str | None:
    """The first option that looks like a secret, at any depth, as `client_kwargs.aws_secret_access_key`; or None.

    An address with a password or a signature counts as a secret, whatever its option is called.
    """
    return _secret_in(options, "")


def holds_secret(address: str) -> bool:
    """Whether an address has a user part or a signature. In Azure's addresses the part before an @ is the container."""
    protocol, separator, rest = address.partition("://")
    if separator and protocol in _CONTAINER_FIRST:
        return ":" in rest.partition("/")[0].rpartition("@")[0] or is_signed(address)
    return has_user(address) or is_signed(address)


def _secret_in(value: Any, name: str) -> str | None:
    if isinstance(value, Mapping):
        pairs = [(f"{name}.{inner}" if name else str(inner), item) for inner, item in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        pairs = [(name, item) for item in value]
    else:
        return name if _is_secret(name.rpartition(".")[2], value) else None
    return next(filter(None, (_secret_in(item, inner) for inner, item in pairs)), None)


def _is_secret(name: str, value: Any) -> bool:
    if isinstance(value, bytes):
        return _NAMES.search(name) is not None
    if not isinstance(value, str) or value.lower() in _NO_SECRETS or value.startswith(FROM_ENVIRONMENT):
        return False
    return _NAMES.search(name) is not None or holds_secret(value)
