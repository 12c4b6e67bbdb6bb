"""The type of block fields that hold an API key."""

from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, SecretStr, WithJsonSchema


def _none_if_blank(value: object) -> object:
    """None for a blank text: a form may save an emptied field so."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    return None if isinstance(text, str) and not text.strip() else value


OptionalKey: TypeAlias = Annotated[
    SecretStr | None,
    BeforeValidator(_none_if_blank),
    WithJsonSchema({"type": "string", "format": "password", "writeOnly": True}),
]
"""An optional key, shown as a password field.

Its schema is that of a password alone, since for `password or null` Prefect's UI first asks which of the two it is."""
