"""Options by their own names and in groups, and the form that Prefect makes of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.hydration import HydrationContext, hydrate
from prefect.utilities.schema_tools.validation import is_valid_schema, validate
from pydantic import ValidationError

import prefect_imagegen
from prefect_imagegen.app.config.option_table import GROUPS, OPTIONS
from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.blocks import GpuWorkerPool, Segmind
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.flows import agenerate_images, generate_images

SCHEMA = parameter_schema(generate_images.fn).model_dump()
PLACES = {"manifest": "s3://bucket/prompts.parquet", "store": "s3://bucket/store"}
SOME = {"limit": 8, "deadline": 30.0, "model": "flux-2-klein-4b", "endpoints": ["openai+http://a:1"], "weights": None}


def grouped(options: dict[str, Any]) -> dict[str, Any]:
    return {
        group: {name: value for name, value in options.items() if OPTIONS[name].group == group}
        for group in {OPTIONS[name].group for name in options}
    }


@given(st.fixed_dictionaries({}, optional={name: st.just(value) for name, value in SOME.items()}), st.data())
def test_groups_and_names_say_the_same(options: dict[str, Any], data: st.DataObject) -> None:
    """An option may be given by its own name, in its group, or both with one value."""
    alone = {name: value for name, value in options.items() if data.draw(st.booleans())}
    both = {name: value for name, value in options.items() if name not in alone or data.draw(st.booleans())}
    assert RunOptions.model_validate(alone | grouped(both)) == RunOptions.model_validate(options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"limit": 8, "execution": {"limit": 9}}, "limit is given twice, by itself and in execution"),
        ({"execution": {"limitt": 9}}, "no option 'limitt' in execution. Did you mean 'limit'?"),
        ({"execution": {"model": "m"}}, "model is not in execution, but in manifest"),
        ({"execution": [8]}, "execution is a group of options"),
        ({"limitt": 8}, "Extra inputs are not permitted"),
        ({"execution": {"limit": 0}}, "greater than or equal to 1"),
    ],
)
def test_what_is_wrong_in_a_group_is_refused(options: dict[str, Any], reason: str) -> None:
    """Two values for one option, and what is no option of its group, are refused by name and without the value."""
    with pytest.raises(ValidationError) as refused:
        RunOptions.model_validate(options)
    assert reason in str(refused.value)


def test_python_refuses_what_is_no_option(tmp_path: Path) -> None:
    """`plan` names the option that was meant."""
    with pytest.raises(RefusedError, match="no option 'max_cost'") as refused:
        prefect_imagegen.plan(tmp_path / "p.csv", tmp_path, max_cost=1.0)
    assert (refused.value.kind, refused.value.remedy) == ("bad_option", "Did you mean 'max_cost_usd'?")


def test_a_saved_cap_survives_the_form() -> None:
    """What a deployment was saved with counts, where the form sends the default of the same field."""
    sent = {"limit": 5, "max_attempts": 2, "execution": {"max_attempts": 5, "deadline": 600}}
    options = RunOptions.model_validate(sent)
    assert (options.limit, options.max_attempts) == (5, 2)


def test_every_field_of_the_form_says_what_it_is() -> None:
    """Parameters and options have titles, descriptions and positions; nothing asks whether it is None but two."""
    described = [*SCHEMA["properties"].items()]
    for group in SCHEMA["definitions"]["RunOptions"]["properties"].values():
        described += [*group["properties"].items(), (group["title"].lower(), group)]
    for name, field in described:
        assert {"title", "description", "position"} <= field.keys(), name
        assert field["title"] != name, name
        if name not in ("options", "concurrency_limit"):
            assert "anyOf" not in field, name
    assert SCHEMA["properties"] == parameter_schema(agenerate_images.fn).model_dump()["properties"]


def test_the_form_begins_with_what_people_change() -> None:
    """Manifest, store and backend come first, then the options with the cap and the limit on top."""
    parameters = sorted(SCHEMA["properties"], key=lambda name: SCHEMA["properties"][name]["position"])
    assert parameters[:4] == ["manifest", "store", "backend", "options"]
    groups = SCHEMA["definitions"]["RunOptions"]["properties"]
    assert sorted(groups, key=lambda name: groups[name]["position"]) == list(GROUPS)
    execution = groups["execution"]["properties"]
    assert sorted(execution, key=lambda name: execution[name]["position"])[:2] == ["max_cost_usd", "limit"]
    names = [name for group in groups.values() for name in group["properties"]]
    assert sorted(names) == sorted(OPTIONS)


@pytest.mark.parametrize(
    ("options", "is_valid"),
    [
        (None, True),
        ({}, True),
        ({"limit": 8, "max_cost_usd": None}, True),
        (grouped({"limit": 8, "model": "m"}), True),
        (json.loads(RunOptions(limit=8).model_dump_json()), True),
        ({"limitt": 8}, False),
        ({"execution": {"limitt": 8}}, False),
        ({"execution": {"limit": "many"}}, False),
    ],
)
def test_the_server_takes_both_forms(options: Any, is_valid: bool) -> None:
    """Prefect's server takes options by name, as older deployments have them, and in groups, and refuses others."""
    is_valid_schema(SCHEMA)
    errors = validate({**PLACES, "options": options}, SCHEMA, raise_on_error=False, preprocess=True)
    assert (errors == []) is is_valid


def test_paths_are_manifests_and_stores(tmp_path: Path) -> None:
    """A flow takes path objects for manifest and store."""
    parameters = generate_images.validate_parameters({"manifest": tmp_path / "p.csv", "store": tmp_path})
    assert (parameters["manifest"], parameters["store"]) == (str(tmp_path / "p.csv"), str(tmp_path))


@pytest.mark.parametrize("block", [Segmind, GpuWorkerPool])
def test_fields_of_blocks_are_options(block: type[Segmind] | type[GpuWorkerPool]) -> None:
    """A field of a block that stands for an option has the option's type and says the same of itself."""
    shared = block.model_fields.keys() & OPTIONS.keys()
    assert len(shared) >= 5
    for name in shared:
        row, field = OPTIONS[name], block.model_fields[name]
        assert field.annotation in (row.type, *getattr(row.type, "__args__", ())) or name == "api_version"
        assert field.title == row.option.title
        assert name == "base_url" or field.description == row.option.help


def test_a_submitted_form_is_understood() -> None:
    """What Prefect's form sends, empty JSON fields included, is the defaults and what the deployment was saved with."""
    empty = {"__prefect_kind": "json"}
    sent = {
        "max_cost_usd": 3,
        "execution": {"on_invalid": "fail", "max_attempts": 5, "deadline": 600, "shard_size": 64},
        "manifest": {"columns": empty, "values": empty, "manifest_storage_options": empty},
        "references": {"reference_storage_options": empty, "keep_references": False},
        "connection": {"strict_parameters": False},
    }
    hydrated = hydrate({**PLACES, "options": sent}, HydrationContext())
    assert validate(hydrated, SCHEMA, raise_on_error=False, preprocess=True) == []
    parameters = generate_images.validate_parameters(hydrated)
    assert parameters["options"] == RunOptions(max_cost_usd=3)
