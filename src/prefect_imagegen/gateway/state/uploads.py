"""Uploaded reference images, and images inside a call as data URLs."""

from pathlib import Path

from prefect_imagegen.core.answers.outputs import looks_like_image
from prefect_imagegen.core.base64_text import decode_base64
from prefect_imagegen.gateway.state.account import AccountState
from prefect_imagegen.gateway.state.file_shelf import UPLOAD_NAME


class BadDataUrlError(ValueError):
    """A text that is not the data URL of an image; the message is the API's error text."""


def asset_path(account_state: AccountState, name: str) -> Path | None:
    """The file of an upload; None if there is none."""
    path = account_state.folder / "assets" / name
    return path if UPLOAD_NAME.fullmatch(name) and path.is_file() else None


def image_of_data_url(url: str, max_bytes: int) -> tuple[bytes, str]:
    """The bytes and sub-type of a `data:image/...;base64,...` URL; CPU-bound. Raises BadDataUrlError."""
    try:
        data = decode_base64(url)
    except ValueError:
        raise BadDataUrlError("not a data:image/...;base64,... URL") from None
    head = url.partition(",")[0].strip().lower()
    if not head.startswith("data:") or not looks_like_image(data):
        raise BadDataUrlError("a data URL must hold an image")
    if len(data) > max_bytes:
        raise BadDataUrlError(f"an image has {len(data)} bytes, more than {max_bytes} (--max-reference-mb)")
    return data, head[len("data:") :].split(";")[0].rsplit("/", 1)[-1]
