"""Examine references while planning: read those that are identified by content, and check those of new rows."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.core.choices import CheckReferences, ReferenceTransport
from prefect_imagegen.core.images.reference_pictures import ReferenceFacts
from prefect_imagegen.core.request.references import family, is_looked_at, unfit
from prefect_imagegen.core.request.request import Reference
from prefect_imagegen.inputs.references.cache import ReferenceCache
from prefect_imagegen.inputs.references.reader import ReadingOptions, ReferenceReader
from prefect_imagegen.net.guard import FetchPolicy
from prefect_imagegen.net.hosts import HostRecords
from prefect_imagegen.providers.registry import entry_of
from prefect_imagegen.providers.settings import ProviderSettings

_REMEMBERED = 100_000
_REMEMBERED_WARNING = "the host of a reference is busy; it is taken for what it was when it was looked at last"
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


def is_local(provider: ProviderSettings) -> bool:
    """Whether the provider runs on this machine, and so can fetch from its loopback addresses."""
    urls = [endpoint.partition("+")[2] for endpoint in provider.endpoints] or [provider.base_url or ""]
    return entry_of(provider.provider).embeds_gateway or all((urlsplit(url).hostname or "") in _LOCAL for url in urls)


def transport_of(provider: ProviderSettings, options: RunOptions) -> ReferenceTransport:
    """How references are sent: inside the call where the provider takes no addresses, as to GPU workers."""
    abilities = entry_of(provider.provider).abilities
    return options.reference_transport if abilities.reference_urls else "data-url"


def account_of(provider: ProviderSettings) -> str:
    """The name under which uploads are cached: one for each API key and host."""
    key = provider.api_key.get_secret_value() if provider.api_key else ""
    return f"{provider.assets_url or provider.base_url or ''} {key}"


def reading_options(
    options: RunOptions, provider: ProviderSettings, manifest: str, store: StoreSettings
) -> ReadingOptions:
    """How the references of a run are read.

    Buckets are opened with --reference-storage-option; without any, with the options of the manifest if it is in the
    same kind of bucket, else with those of the store if that is.
    """
    by_scheme: dict[str, Mapping[str, Any]] = {}
    for url, storage_options in ((store.url, store.storage_options), (manifest, options.manifest_storage_options)):
        if storage_options:
            by_scheme[family(url)] = storage_options
    if options.reference_storage_options:
        by_scheme = dict.fromkeys(("s3", "gs", "az"), options.reference_storage_options)
    policy = FetchPolicy(allow_loopback=is_local(provider), allow_private=options.allow_private_references)
    return ReadingOptions(by_scheme, policy, options.max_reference_megapixels)


@dataclass(frozen=True, slots=True)
class ReferenceChecks:
    """Reads and checks the references of a plan. Blocking: runs in the planner's thread, with its own event loop."""

    reading: ReadingOptions
    check: CheckReferences = "all"
    transport: ReferenceTransport = "auto"
    _facts: dict[tuple[str, bool], ReferenceFacts | str] = field(default_factory=dict)
    """The results so far, by URI and `look`: a plan reads each reference once."""
    hosts: HostRecords = field(default_factory=HostRecords)
    remembered: Counter[str] = field(default_factory=Counter)
    """Warnings about references whose host is busy, so that the facts of an earlier look are used, with counts."""

    def contents(self, uris: Iterable[str]) -> dict[str, ReferenceFacts | str]:
        """The facts of references that are identified by content, by URI, or the reason why one cannot be read."""
        return self._examine(uris, look=self.check != "none")

    def judge(self, references: Iterable[Reference]) -> list[ReferenceFacts | str | None]:
        """For each reference, in order: its facts, or what is wrong with it.

        None for references that are not examined (--check-references).
        """
        wanted = list(references)
        chosen = {
            reference.uri for reference in wanted if reference.facts is None and is_looked_at(reference.uri, self.check)
        }
        examined = self._examine(chosen, look=True)
        judged: list[ReferenceFacts | str | None] = []
        for reference in wanted:
            facts = reference.facts or examined.get(reference.uri)
            judged.append(facts if isinstance(facts, str) else unfit(reference.uri, facts, self.transport) or facts)
        return judged

    def _examine(self, uris: Iterable[str], *, look: bool) -> dict[str, ReferenceFacts | str]:
        wanted = set(uris)
        results = {uri: self._facts[uri, look] for uri in wanted if (uri, look) in self._facts}
        if rest := wanted - results.keys():
            newly_read = asyncio.run(self._read(rest, look))
            if len(self._facts) + len(newly_read) > _REMEMBERED:
                self._facts.clear()
            self._facts.update({(uri, look): facts for uri, facts in newly_read.items()})
            results |= newly_read
        return results

    async def _read(self, uris: set[str], look: bool) -> dict[str, ReferenceFacts | str]:
        async with ReferenceCache() as cache, ReferenceReader(self.reading, cache, self.hosts) as reader:
            facts = await reader.examine(uris, look=look)
            if reader.remembered:
                self.remembered[_REMEMBERED_WARNING] += reader.remembered
            return facts
