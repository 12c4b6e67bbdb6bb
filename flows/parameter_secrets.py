"""Secrets among a flow's parameters are refused: Prefect's server keeps parameters, and shows them in its UI."""

from prefect_imagegen.app.options import SECRET_OPTIONS, GenerateOptions
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.redact import redact
from prefect_imagegen.core.secrets import holds_secret, secret_option

_STORED = "and Prefect's server keeps the parameters of runs"


def refuse_secrets(manifest: str, store: str, options: GenerateOptions) -> None:
    """Refuse parameters that hold a password or a signature. Raises RefusedError (`secret_in_parameters`)."""
    for name, address in (("manifest", manifest), ("store", store)):
        if holds_secret(address):
            remedy = "Give it without one"
            raise RefusedError(
                "secret_in_parameters",
                f"The address of the {name}, {redact(address)}, holds a password or a signature, {_STORED}.",
                remedy=f"{remedy}, and save its credentials in a block image-store/NAME."
                if name == "store"
                else f"{remedy}, and let the environment of the process that runs the flow hold its credentials. "
                "Change what has become known.",
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
