"""Fields of blocks: API keys, and options of a run that a block may say."""

from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, SecretStr, WithJsonSchema

from prefect_imagegen.app.config.option_fields import option_field


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


def block_option(name: str, **changed: Any) -> Any:
    """The field of an option of a run. It has no upper limits, since whatever was saved has to load."""
    return option_field(name, **({"default": None, "le": None, "min_length": None} | changed))
