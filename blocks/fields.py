"""The type of block fields that hold a key, in the form that Prefect's UI masks."""

from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, SecretStr, WithJsonSchema


def _none_if_blank(value: object) -> object:
    """A field that is emptied in a form may be saved as an empty text, which is no key."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    return None if isinstance(text, str) and not text.strip() else value


OptionalKey: TypeAlias = Annotated[
    SecretStr | None,
    BeforeValidator(_none_if_blank),
    WithJsonSchema({"type": "string", "format": "password", "writeOnly": True}),
]
"""A key that may be missing. Its schema is that of a password alone, so that Prefect's UI shows a password field at
once; for `password or null` the UI asks first which of the two it is."""
