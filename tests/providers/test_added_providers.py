"""Providers that installed distributions add: docs/extend/provider.md, "The entry point"."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.resolve import resolve_provider
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.providers import registry
from prefect_imagegen.providers.pool.entry import POOL
from prefect_imagegen.providers.registry import PROVIDERS, entry_of
from prefect_imagegen.providers.settings import ProviderSettings
from tests.support.queue_provider.added import NAME, block, install

OTHER = """
from dataclasses import replace
from prefect_imagegen.providers.segmind.entry import SEGMIND
ENTRY = replace(SEGMIND, name="{name}", abilities=replace(SEGMIND.abilities, key_scope={scope!r}))
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path in which distributions can be installed."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_distribution_adds_a_provider(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry point that the page shows makes the page's provider known, with settings from its own variables."""
    points = tomllib.loads(block("toml"))["project"]["entry-points"][registry.ENTRY_POINTS]
    install(site, NAME, points[NAME], queue_images=block("python"))
    monkeypatch.setenv("QUEUE_IMAGES_KEY", "secret-of-the-queue")
    monkeypatch.setenv("SEGMIND_API_KEY", "SG_secret_of_another")
    try:
        entry = entry_of(NAME)
        assert (entry.name, entry.abilities.key_scope) == (NAME, NAME)
        settings = resolve_provider(ProviderSettings(NAME), RunOptions())
        assert settings.api_key is not None
        assert settings.api_key.get_secret_value() == "secret-of-the-queue"
        assert (settings.max_in_flight, settings.requests_per_minute) == (16, None)
    finally:
        sys.modules.pop("queue_images", None)


def test_the_command_line_takes_it(site: Path) -> None:
    """`--backend NAME` means the added provider: without its key the run is refused, and its own remedy is named."""
    install(site, NAME, "queue_images:ENTRY", queue_images=block("python"))
    (site / "prompts.csv").write_text("prompt\na cup\n")
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); from prefect_imagegen.cli.main import main; "
        f"sys.argv = ['prefect-imagegen', 'generate', 'prompts.csv', '--store', 's', '--backend', {NAME!r}, "
        "'--prefect', 'off']; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=site, capture_output=True, text=True, timeout=120, check=False
    )
    output = " ".join((ended.stdout + ended.stderr).split())
    assert ended.returncode == 2, output
    assert "Set QUEUE_IMAGES_KEY." in output
    assert "SEGMIND" not in output


@pytest.mark.parametrize(
    ("name", "value", "source", "reason"),
    [
        ("torn", "torn_module:ENTRY", "raise OSError('no licence')", "cannot be loaded: OSError no licence"),
        ("torn", "absent_module:ENTRY", "", "cannot be loaded: ModuleNotFoundError"),
        ("torn", "torn_module:NOTHING", "", "cannot be loaded: AttributeError"),
        ("torn", "torn_module:ENTRY", "ENTRY = object()", "is no ProviderEntry"),
        ("torn", "torn_module:ENTRY", OTHER.format(name="else", scope="x"), "calls itself 'else'"),
        ("torn", "torn_module:ENTRY", OTHER.format(name="torn", scope=None), "paid and declares no key_scope"),
    ],
)
def test_a_broken_one_is_named(name: str, value: str, source: str, reason: str, site: Path) -> None:
    """A provider that cannot be used is refused with its distribution and what is wrong; others are not affected."""
    install(site, name, value, "torn-images", torn_module=source)
    try:
        with pytest.raises(RefusedError, match="torn-images") as refusal:
            entry_of(name)
        assert refusal.value.kind == "backend_broken"
        assert reason in str(refusal.value)
        assert entry_of("pool") is POOL
    finally:
        sys.modules.pop("torn_module", None)


def test_two_distributions_of_one_name(site: Path) -> None:
    """Which of two distributions is meant is never guessed."""
    for distribution in ("first-images", "second-images"):
        install(site, "twice", "nowhere:ENTRY", distribution)
    with pytest.raises(RefusedError, match="first-images, second-images"):
        entry_of("twice")


@pytest.mark.parametrize("name", sorted(PROVIDERS))
def test_a_built_in_name_is_not_taken(name: str, site: Path) -> None:
    """A distribution cannot put itself in the place of a built-in provider, whose key it would get."""
    install(site, name, "thief:ENTRY", "thief", thief="raise SystemExit('loaded')")
    assert entry_of(name) is PROVIDERS[name]
    assert "thief" not in sys.modules


def test_an_unknown_name_lists_the_known_ones(site: Path) -> None:
    """The refusal names every provider there is, added ones too, without loading them."""
    install(site, NAME, "absent_module:ENTRY")
    with pytest.raises(RefusedError) as refusal:
        entry_of("segmnd")
    assert refusal.value.kind == "backend_unknown"
    assert all(name in str(refusal.value) for name in (*PROVIDERS, NAME))


def test_the_scope_of_a_provider_is_in_the_key() -> None:
    """Two sellers of one slug have other request keys; without a scope the canonical form does not mention one."""
    request = GenerationRequest("flux-2-klein-9b", {"prompt": "a cup", "seed": 7})
    scoped = GenerationRequest("flux-2-klein-9b", {"prompt": "a cup", "seed": 7}, provider="queue-images")
    other = GenerationRequest("flux-2-klein-9b", {"prompt": "a cup", "seed": 7}, provider="other")
    assert b"provider" not in request.canonical()
    assert b'"provider":"queue-images"' in scoped.canonical()
    assert len({request.key, scoped.key, other.key}) == 3
    assert all(entry.abilities.key_scope is None for entry in PROVIDERS.values())
