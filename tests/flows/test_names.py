"""Names and keys that people see in the Prefect UI."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.flows.names import artifact_key


@given(st.text(max_size=60), st.sampled_from(["", "s3://", "file:///", "https://"]))
def test_keys_are_such_that_prefect_takes(text: str, protocol: str) -> None:
    """Whatever a store is called, the key of its artifacts has lower case letters, digits and dashes only."""
    key = artifact_key("summary", protocol + text)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key)


def test_stores_have_keys_of_their_own() -> None:
    """Two stores never share a key, and one store keeps its key, with or without a slash at its end."""
    stores = ["s3://a/images", "s3://b/images", "/srv/images", "images", "s3://a/images/x"]
    assert len({artifact_key("summary", store) for store in stores}) == len(stores)
    assert artifact_key("summary", "s3://a/images/") == artifact_key("summary", "s3://a/images")


@pytest.mark.parametrize(
    ("names", "keys"),
    [(["nightly", "Nightly run"], ["nightly", "nightly-run"]), (["夜間", "週次"], ["run-341fea", "run-093ece"])],
)
def test_deployments_have_keys_of_their_own(names: list[str], keys: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of a deployment's artifacts has its name; names that a key cannot hold are told apart by a digest."""
    made = []
    for name in names:
        monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "1")
        monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__NAME", name)
        made.append(artifact_key("summary", "s3://a"))
    assert made == [f"imagegen-summary-{key}" for key in keys]


def test_nothing_secret_is_in_a_key() -> None:
    """A query and the user of a URL do not reach the key."""
    key = artifact_key("summary", "https://user:hunter2@host/store?sig=hunter2")
    assert key.startswith("imagegen-summary-store-")
    assert "hunter2" not in key
