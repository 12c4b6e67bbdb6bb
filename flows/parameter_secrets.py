"""Refuses secrets in a flow's parameters: Prefect's server stores parameters, and shows them in its UI."""

from collections.abc import Iterator
from urllib.parse import parse_qs

from prefect_imagegen.app.config.option_table import SECRET_OPTIONS
from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.redact import redact
from prefect_imagegen.core.secrets import FROM_ENVIRONMENT, holds_secret, secret_option

_STORED = "and Prefect's server keeps the parameters of runs"


def refuse_secrets(manifest: str, store: str, options: RunOptions) -> None:
    """Raise RefusedError (`secret_in_parameters`) for parameters that hold a password, a signature or a key."""
    for name, address, remedy in _addresses(manifest, store, options):
        if holds_secret(address) or _holds_key(address):
            raise RefusedError(
                "secret_in_parameters",
                f"The address of the {name}, {redact(address)}, holds a password, a signature or a key, {_STORED}.",
                remedy=f"Give it without one, and {remedy}. Change what has become known.",
            )
    for name in sorted(SECRET_OPTIONS):
        secret = secret_option(getattr(options, name))
        if secret is not None:
            raise RefusedError(
                "secret_in_parameters",
                f"options.{name} holds what looks like a secret ({secret}), {_STORED}.",
                remedy="Put it into the environment of the process that runs the flow; references in buckets are also "
                "opened with the options of the block image-store. Change what has become known.",
            )


def _addresses(manifest: str, store: str, options: RunOptions) -> Iterator[tuple[str, str, str]]:
    """Each URL among the parameters: what it addresses, the URL, and where its secrets belong."""
    environment = "let the environment of the process that runs the flow hold its credentials"
    yield "manifest", manifest, environment
    yield "store", store, "save its credentials in a block image-store/NAME"
    yield "API (options.base_url)", options.base_url or "", "save the key in a block segmind/NAME"
    for number, endpoint in enumerate(options.endpoints, 1):
        yield (
            f"worker {number} (options.endpoints)",
            endpoint,
            "write #key=env:NAME, or save a block gpu-worker-pool/NAME",
        )


def _holds_key(endpoint: str) -> bool:
    """Whether a worker's endpoint holds the key itself, and not the name of a variable."""
    fragment = parse_qs(endpoint.partition("#")[2])
    return any(not key.startswith(FROM_ENVIRONMENT) for key in fragment.get("key", ()))
