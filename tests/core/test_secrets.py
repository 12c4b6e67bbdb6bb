"""Options that look like secrets are found at any depth; names that only sound like one pass."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.request.references import is_signed
from prefect_imagegen.core.secrets import holds_secret, secret_option


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"key": "AKIA0", "secret": "x"}, "key"),
        ({"aws_access_key_id": "AKIA0"}, "aws_access_key_id"),
        ({"client_kwargs": {"config": {"aws_session_token": "x"}}}, "client_kwargs.config.aws_session_token"),
        ({"credential": "x"}, "credential"),
        ({"Authorization": "Bearer x"}, "Authorization"),
        ({"headers": [{"X-Api-Key": "x"}]}, "headers.X-Api-Key"),
        ({"account_key": "x"}, "account_key"),
        ({"sas_token": "x"}, "sas_token"),
        ({"connection_string": "AccountKey=x"}, "connection_string"),
        ({"endpoint_url": "https://user:pw@host"}, "endpoint_url"),
        ({"client_kwargs": {"endpoint_url": "https://host/?sig=x"}}, "client_kwargs.endpoint_url"),
        ({"password": b"x"}, "password"),
        ({"token": "anon"}, None),
        ({"token": "google_default", "anon": True, "use_ssl": False}, None),
        ({"secret": "env:MY_SECRET"}, None),
        ({"endpoint_url": "http://127.0.0.1:9000", "client_kwargs": {"region_name": "eu-1"}}, None),
        ({"max_concurrency": 4, "keyboard": "de", "monkey": "yes", "tokens_per_minute": 60}, None),
        ({}, None),
    ],
)
def test_options_that_look_like_secrets(options: dict[str, Any], path: str | None) -> None:
    """An option is a secret by its name, or by a password or signature in its address; its path is told."""
    assert secret_option(options) == path


NAMES = st.sampled_from(["a", "config", "client_kwargs", "items"])


@given(st.lists(st.one_of(NAMES, st.integers(0, 2)), max_size=6))
def test_no_depth_hides_a_secret(path: list[str | int]) -> None:
    """Within any nesting of objects and lists a secret is found."""
    value: Any = {"secret": "hunter2"}
    for step in reversed(path):
        value = {step: value} if isinstance(step, str) else [1] * step + [value]
    assert str(secret_option({"options": value})).endswith("secret")


@pytest.mark.parametrize(
    ("address", "is_secret"),
    [
        ("https://host/a.parquet?X-Amz-Signature=1", True),
        ("https://host/a.parquet?X-Goog-Signature=1", True),
        ("https://account.blob.core.windows.net/c/a.csv?sv=1&se=2&sp=r&sig=x", True),
        ("https://host/a.csv?x=1&access_token=abc", True),
        ("https://host/a.csv?api_key=abc", True),
        ("https://host/a.csv?jwt=abc", True),
        ("https://host/a.csv?hmac=abc", True),
        ("https://cdn/a.csv?auth_key=1-2-3", True),
        ("https://cdn/a.csv?Expires=1&Policy=x&Signature=y&Key-Pair-Id=z", True),
        ("ftp://user:pw@host/a.csv", True),
        ("https://user@host/a.csv", True),
        ("https://host/a.csv?v=2&size=large&monkey=1&authors=1", False),
        ("ftp://user:p@w@host/a.csv", True),
        ("http://user:pa/ss@host/a.csv", True),
        ("http://host:8080/a@b.csv", False),
        ("abfs://container@account.dfs.core.windows.net/a.csv", False),
        ("abfss://container:pw@account.dfs.core.windows.net/a.csv", True),
        ("s3://bucket/a@b.parquet", False),
        ("/data/user:pw@host.csv", False),
        ("prompts.parquet", False),
        ("http://[broken", False),
    ],
)
def test_addresses_that_hold_secrets(address: str, is_secret: bool) -> None:
    """A user part or a signature in an address is a secret; other queries are not."""
    assert holds_secret(address) is is_secret
    assert "?" not in address or is_signed(address) is is_secret
