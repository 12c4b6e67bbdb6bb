"""The columns of deliveries, which events, results and metadata share, made from the fields of `DeliveryFacts`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from prefect_imagegen.core.columns import columns_of, schema_with
from prefect_imagegen.core.ledger.events import DeliveryFacts, ImageFacts

_OF_IMAGE = {column.name or name: (name, column) for name, column in columns_of(ImageFacts).items()}
_OF_CALL = {column.name or name: (name, column) for name, column in columns_of(DeliveryFacts).items()}
_COLUMNS = _OF_IMAGE | _OF_CALL
DELIVERY_COLUMNS = frozenset(_COLUMNS)
"""All columns of deliveries."""
IMAGE_COLUMNS: tuple[str, ...] = tuple(_OF_IMAGE)
"""The columns of the facts of an image."""
MEANINGS: Mapping[str, str] = {name: column.meaning for name, (_, column) in _COLUMNS.items() if column.meaning}
"""The columns of deliveries that the metadata has, and what they mean."""


def delivery_schema(*placed: pa.Field | str) -> pa.Schema:
    """A schema of these fields and all columns of deliveries, which may be placed among them by name."""
    return schema_with(placed, {name: column.kind for name, (_, column) in _COLUMNS.items()})


def metadata_schema(*placed: pa.Field | str) -> pa.Schema:
    """As `delivery_schema`, with those columns of deliveries only that are explained."""
    return schema_with(placed, {name: _COLUMNS[name][1].kind for name in MEANINGS})


def delivery_values(records: Sequence[DeliveryFacts]) -> dict[str, list[Any]]:
    """The values of the columns of deliveries, one for each record."""
    images = [record.image for record in records]
    values = {
        name: [getattr(image, attribute) if image else None for image in images]
        for name, (attribute, _) in _OF_IMAGE.items()
    }
    for name, (attribute, column) in _OF_CALL.items():
        facts = [getattr(record, attribute) for record in records]
        values[name] = [_json(fact) for fact in facts] if column.is_json else facts
    return values


def explained_values(record: DeliveryFacts) -> dict[str, Any]:
    """One record's values of the columns of deliveries that the metadata has."""
    values = delivery_values([record])
    return {name: values[name][0] for name in MEANINGS}


def facts_in(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `DeliveryFacts` in a row with its columns, as arguments; columns that it lacks are unknown."""
    facts: dict[str, Any] = {"image": image_facts(row)}
    for name, (attribute, column) in _OF_CALL.items():
        value = row.get(name)
        facts[attribute] = json.loads(value or "{}") if column.is_json else value
    return facts


def image_facts(row: Mapping[str, Any]) -> ImageFacts | None:
    """The image's facts in a row with the columns of deliveries; None if it has no image."""
    if row.get("image_path") is None:
        return None
    facts = {attribute: row.get(name) for name, (attribute, _) in _OF_IMAGE.items()}
    return ImageFacts(**facts | {"flags": tuple(facts["flags"] or ())})


def _json(value: Any) -> str | None:
    """An object as JSON, the same for the same content; None if it is empty."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True) if value else None
