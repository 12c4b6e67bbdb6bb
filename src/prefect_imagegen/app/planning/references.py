"""References in the plan: those that are identified by content are read, and those of new rows looked at."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import ProviderSettings, StoreSettings
from prefect_imagegen.core.images.reference_pictures import ReferenceFacts
from prefect_imagegen.core.request.references import CheckReferences, ReferenceTransport, family, is_looked_at, unfit
from prefect_imagegen.core.request.request import Reference
from prefect_imagegen.inputs.references.cache import ReferenceCache
from prefect_imagegen.inputs.references.reader import ReadingOptions, ReferenceReader
from prefect_imagegen.net.guard import FetchPolicy
from prefect_imagegen.net.hosts import HostRecords

_REMEMBERED = 100_000
_REMEMBERED_WARNING = "the host of a reference is busy; it is taken for what it was when it was looked at last"
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


def is_local(provider: ProviderSettings) -> bool:
    """Whether the backend runs on this machine, and can fetch from its loopback addresses."""
    urls = [one.partition("+")[2] for one in provider.endpoints] or [provider.base_url or ""]
    return provider.provider == "sandbox" or all((urlsplit(url).hostname or "") in _LOCAL for url in urls)


def transport_of(provider: ProviderSettings, options: RunOptions) -> ReferenceTransport:
    """How references travel: to workers always inside the call, so that they need no way to where the pictures lie."""
    return "data-url" if provider.provider == "pool" else options.reference_transport


def account_of(provider: ProviderSettings) -> str:
    """Whose uploads they are: of one key at one host."""
    key = provider.api_key.get_secret_value() if provider.api_key else ""
    return f"{provider.assets_url or provider.base_url or ''} {key}"


def reading_options(
    options: RunOptions, provider: ProviderSettings, manifest: str, store: StoreSettings
) -> ReadingOptions:
    """How a job's references are read.

    A bucket is opened with --reference-storage-option; without any, with the options of the manifest if that lies in
    the same kind of bucket, else with those of the store if it does.
    """
    by_scheme: dict[str, Mapping[str, Any]] = {}
    for url, given in ((store.url, store.storage_options), (manifest, options.manifest_storage_options)):
        if given:
            by_scheme[family(url)] = given
    if options.reference_storage_options:
        by_scheme = dict.fromkeys(("s3", "gs", "az"), options.reference_storage_options)
    policy = FetchPolicy(allow_loopback=is_local(provider), allow_private=options.allow_private_references)
    return ReadingOptions(by_scheme, policy, options.max_reference_megapixels)


@dataclass(frozen=True, slots=True)
class ReferenceChecks:
    """Reads and judges the references of a plan. Blocking: it runs in the planner's thread, with a loop of its own."""

    reading: ReadingOptions
    check: CheckReferences = "all"
    transport: ReferenceTransport = "auto"
    _seen: dict[tuple[str, bool], ReferenceFacts | str] = field(default_factory=dict)
    """What this plan has found out: each reference is read once, whatever its server says of its version."""
    hosts: HostRecords = field(default_factory=HostRecords)
    remembered: Counter[str] = field(default_factory=Counter)
    """References taken for what they were at an earlier look, since their host is busy now, by why."""

    def contents(self, uris: Iterable[str]) -> dict[str, ReferenceFacts | str]:
        """Facts of references that are identified by content, or why one cannot be read."""
        return self._examine(uris, look=self.check != "none")

    def judge(self, references: Iterable[Reference]) -> list[ReferenceFacts | str | None]:
        """The facts of each reference of rows that are to be made, or what is wrong with it, in order.

        None for those that nobody looks at (--check-references).
        """
        wanted = list(references)
        chosen = {one.uri for one in wanted if one.facts is None and is_looked_at(one.uri, self.check)}
        looked = self._examine(chosen, look=True)
        judged: list[ReferenceFacts | str | None] = []
        for one in wanted:
            facts = one.facts or looked.get(one.uri)
            judged.append(facts if isinstance(facts, str) else unfit(one.uri, facts, self.transport) or facts)
        return judged

    def _examine(self, uris: Iterable[str], *, look: bool) -> dict[str, ReferenceFacts | str]:
        wanted = set(uris)
        found = {uri: self._seen[uri, look] for uri in wanted if (uri, look) in self._seen}
        if rest := wanted - found.keys():
            read = asyncio.run(self._read(rest, look))
            if len(self._seen) + len(read) > _REMEMBERED:
                self._seen.clear()
            self._seen.update({(uri, look): facts for uri, facts in read.items()})
            found |= read
        return found

    async def _read(self, uris: set[str], look: bool) -> dict[str, ReferenceFacts | str]:
        async with ReferenceCache() as cache, ReferenceReader(self.reading, cache, self.hosts) as reader:
            found = await reader.examine(uris, look=look)
            if reader.remembered:
                self.remembered[_REMEMBERED_WARNING] += reader.remembered
            return found
