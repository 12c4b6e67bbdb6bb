"""`doctor`: check everything that a run needs: store, clock, endpoint, key, balance, history, limits."""

import asyncio
import logging
import secrets
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.resolve import open_provider, resolve_provider
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import ProviderError, RefusedError, StoreError
from prefect_imagegen.core.ledger.accounts import fingerprint_of
from prefect_imagegen.core.money import usd
from prefect_imagegen.core.policy.abilities import COSTS_UNNAMED
from prefect_imagegen.core.policy.history_lookup import Window
from prefect_imagegen.core.policy.outcomes import OUTCOMES
from prefect_imagegen.core.request.models import DEFAULT_MODEL
from prefect_imagegen.ports import PaidAccount, Provider
from prefect_imagegen.providers.entry import DEFAULT_IN_FLIGHT
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.providers.pool.endpoint import DEFAULT_LIMIT
from prefect_imagegen.providers.registry import entry_of
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.contract.contract import Finding, StoreContract
from prefect_imagegen.store.ledger.accounts import known_keys
from prefect_imagegen.store.ledger.reading import load_ledger, segments
from prefect_imagegen.store.object_store import FsspecObjectStore, open_object_store
from prefect_imagegen.store.store_kind import StoreKind, read_kind

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

_SKEW_S = 60.0
_LOW_BALANCE_USD = 1.0
_LOW_DISK_BYTES = 1 << 30
_FILES_PER_CALL = 3
"""Open files per call: a connection, a file of the store, and one to spare."""
_FILES_BESIDE = 200
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Check:
    """One check and its result.

    `state`: `ok`; `warn` (worth knowing, but a run works); `fail` (a run does not work); `unknown` (not determined).
    """

    name: str
    state: Literal["ok", "warn", "fail", "unknown"]
    text: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dict, for JSON."""
        return asdict(self)


async def examine(
    settings: StoreSettings, provider: ProviderSettings, options: RunOptions, *, deep: bool = False
) -> AsyncIterator[Check]:
    """Check everything, in the order of a run. Nothing is submitted; a probe object is written and removed.

    `deep`: also run the checks of the store contract, with some 1,200 small objects, which are removed again.
    Raises RefusedError for invalid options.
    """
    resolved = resolve_provider(provider, options)
    store = open_object_store(settings.url, settings.storage_options)
    absent = _absent_folders(settings.url)
    try:
        usable = True
        async for check in _store(store, settings.url):
            usable = usable and (check.name, check.state) != ("store", "fail")
            yield check
        if deep and usable:
            async for check in _contract(store, settings):
                yield check
        elif deep:
            yield Check("contract", "unknown", "what the store holds was not tried", "Mend what is said of it first.")
        async for check in _endpoint(store, resolved, options):
            yield check
    finally:
        with suppress(StoreError):
            await store.prune(layout.PROBES)
        _remove_empty(absent)
        store.close()
    yield _limits(resolved)


def _absent_folders(url: str) -> list[Path]:
    """The folder of a local store and those above it, as far as they do not exist; the deepest first."""
    if "://" in url and not url.startswith("file://"):
        return []
    folder = Path(url.removeprefix("file://")).expanduser().absolute()
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that the checks made; one that holds something stays, and so do those above it."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


async def _store(store: FsspecObjectStore, url: str) -> AsyncIterator[Check]:
    probe = layout.probe(secrets.token_hex(8))
    try:
        made = [await store.create(probe, b"1"), await store.create(probe, b"2")]
        await store.put(probe, b"3")
        same = await store.get(probe) == b"3"
        listed = probe in [info.path for info in await store.list(layout.PROBES)]
        head = await store.head(probe)
    except StoreError as error:
        yield Check("store", "fail", error.message, error.remedy)
        with suppress(StoreError):
            await store.delete(probe)
        return
    if same and listed and head is not None:
        yield Check("store", "ok", f"{store.url} can be written, read and listed")
    else:
        text = f"{store.url} takes objects and does not give them back at once"
        yield Check("store", "fail", text, "Use a store that is consistent after a write.")
    if made == [True, False]:
        yield Check("create-only", "ok", "a second put of the same object is refused")
    else:
        remedy = "Use a store with conditional puts (S3, R2, MinIO, GCS, Azure), or a local path."
        yield Check(
            "create-only", "fail", "objects that exist are overwritten, so nothing protects paid images", remedy
        )
    yield _clock(head.modified if head else None)
    try:
        await store.delete(probe)
        yield Check("delete", "ok", "objects can be removed")
    except StoreError as error:
        text = f"{error.message} The ledger's absorbed segments and old claims would stay for ever."
        yield Check("delete", "warn", text, "Allow it below ledger/, or remove doctor/ and old segments yourself.")
    yield await _ledger(store)
    if "://" not in url:
        yield _disk(url)


async def _contract(store: FsspecObjectStore, settings: StoreSettings) -> AsyncIterator[Check]:
    """Run all checks of the store contract in a folder of their own, which is removed even if they are interrupted."""
    folder = layout.probe(secrets.token_hex(8))
    twin = open_object_store(settings.url, settings.storage_options)
    try:
        contract = StoreContract(store, twin, folder, SystemClock())
        try:
            async for finding in contract.findings():
                yield _check_of(finding)
        except BaseException:
            cleanup = await contract.clean()
            if cleanup.state != "ok":
                _logger.warning("%s %s", cleanup.observed, cleanup.remedy)
            raise
        yield _check_of(await contract.clean())
    finally:
        twin.close()
        with suppress(StoreError):
            await store.prune(folder)


def _check_of(finding: Finding) -> Check:
    text = f"{finding.observed}. {finding.meaning}" if finding.meaning else finding.observed
    return Check(finding.name, finding.state, text.replace("..", "."), finding.remedy)


def _disk(folder: str) -> Check:
    free = shutil.disk_usage(Path(folder).expanduser()).free
    text = f"{free / 1e9:.1f} GB are free"
    return Check("disk", "ok", text) if free > _LOW_DISK_BYTES else Check("disk", "warn", text, "Make room.")


def _clock(modified: datetime | None) -> Check:
    if modified is None:
        return Check(
            "clock", "warn", "the store tells no times; runs go by this machine's clock", "Keep it right (NTP)."
        )
    skew = (datetime.now(UTC) - modified).total_seconds()
    if abs(skew) <= _SKEW_S:
        return Check("clock", "ok", f"this machine and the store differ by less than {_SKEW_S:.0f} s")
    text = f"this machine is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the store"
    return Check("clock", "warn", text, "Set it right (NTP): signatures and request histories go by it.")


async def _ledger(store: FsspecObjectStore) -> Check:
    try:
        view, count = await load_ledger(store), len(await segments(store))
    except StoreError as error:
        return Check("ledger", "fail", error.message, error.remedy)
    return Check("ledger", "ok", f"{len(view.delivered_keys):,} images, {count:,} open segments")


async def _endpoint(store: FsspecObjectStore, settings: ProviderSettings, options: RunOptions) -> AsyncIterator[Check]:
    entry = entry_of(settings.provider)
    if entry.is_embedded(settings):
        yield Check("endpoint", "ok", "the embedded sandbox: placeholders, no key, no money")
        yield await _kind(store, entry.kind(None))
        return
    provider = open_provider(settings, options.deadline)
    try:
        workers = await provider.examine()
        for endpoint, why in workers:
            if why:
                yield Check("worker", "fail", f"{endpoint}: {why}", "Start it, or leave it out; the others go on.")
            else:
                yield Check("worker", "ok", f"{endpoint} is ready")
        try:
            engine = await provider.engine()
        except ProviderError as error:
            yield Check("endpoint", "fail", error.message, "Check --base-url, the network and the proxy.")
            if entry.abilities.claims:
                yield _key_unasked(settings)
            return
        if not workers:
            text = f"{provider.endpoint} answers" + (f", engine {engine}" if engine else "")
            yield Check("endpoint", "ok", text)
        yield await _kind(store, entry.kind(engine))
        if entry.abilities.claims:
            async for check in _account(provider, settings):
                yield check
            if settings.api_key is not None:
                yield await _paid_before(store, settings.api_key.get_secret_value(), entry.url(settings))
    finally:
        await provider.aclose()


async def _kind(store: FsspecObjectStore, kind: StoreKind) -> Check:
    try:
        existing = await read_kind(store, kind)
    except (RefusedError, StoreError) as error:
        return Check("kind", "fail", error.message, error.remedy)
    return Check("kind", "ok", f"a {kind} store" if existing else f"no store yet: the first run makes a {kind} store")


def _key_unasked(settings: ProviderSettings) -> Check:
    """What is known of the key where the endpoint gives no answer."""
    if settings.api_key is None:
        return _no_key(settings)
    detail = "a key is set; whether it is accepted could not be asked"
    return Check("key", "unknown", detail, "Mend the endpoint first.")


def _no_key(settings: ProviderSettings) -> Check:
    return Check("key", "fail", "there is no API key", entry_of(settings.provider).key_remedy)


async def _account(provider: Provider, settings: ProviderSettings) -> AsyncIterator[Check]:
    """The checks of the account, as far as the provider has its parts."""
    key_remedy, account = entry_of(settings.provider).key_remedy, provider.account
    if not provider.abilities.cost_in_answer:
        yield Check("costs", "warn", COSTS_UNNAMED, "Compare what a run reports with the provider's bill.")
    if settings.api_key is None:
        yield _no_key(settings)
        return
    if account is None or not provider.abilities.balance:
        yield Check("key", "unknown", "no free call proves the key: the first paid one does")
    else:
        try:
            credits_usd = (await account.check()).credits_usd
        except ProviderError as error:
            remedy = key_remedy if error.kind == "auth" else "Try again; look at the endpoint's status page."
            yield Check("key", "fail", f"{provider.endpoint} says: {error.message}", remedy)
            return
        yield Check("key", "ok", "the key is accepted")
        yield _balance(credits_usd)
    yield await _history(provider, account)


def _balance(credits_usd: float | None) -> Check:
    if credits_usd is None:
        return Check("balance", "warn", "the account tells no balance", "Set --max-cost-usd to be on the safe side.")
    if credits_usd <= 0:
        return Check("balance", "fail", "the balance is 0 USD", "Top up.")
    if credits_usd < _LOW_BALANCE_USD:
        return Check("balance", "warn", f"{usd(credits_usd)} are left", "Top up before a large run.")
    return Check("balance", "ok", usd(credits_usd, places=2))


async def _paid_before(store: FsspecObjectStore, api_key: str, base_url: str) -> Check:
    """Check whether the key belongs to an account that has paid in this store."""
    try:
        keys = await known_keys(store)
    except StoreError as error:
        return Check("account", "fail", error.message, error.remedy)
    fingerprint = await asyncio.to_thread(fingerprint_of, api_key, base_url)
    own = next((key for key in keys if key.fingerprint == fingerprint), None)
    if own is not None:
        return Check("account", "ok", f"the key belongs to account {own.account}, which is known in this store")
    if not keys:
        return Check(
            "account", "ok", "nothing was paid in this store with a key that is known: this one founds an account"
        )
    names = ", ".join(dict.fromkeys(key.account for key in keys))
    text = f"this store was used with account {names}, and has not seen this key"
    remedy = "The next run finds out whether it is of the same account; until then calls of that one are held."
    return Check("account", "warn", text, remedy)


async def _history(provider: Provider, account: PaidAccount | None) -> Check:
    if account is None or not provider.abilities.history:
        text = "the provider keeps none: a call without an answer stays held until `resend` gives its row free"
        return Check("history", "warn", text, OUTCOMES["no_history"].remedy)
    try:
        now = datetime.now(UTC)
        await account.find(DEFAULT_MODEL, {}, Window(now - timedelta(minutes=1), now))
    except ProviderError as error:
        text = f"the request history cannot be read ({error.message}): calls without an answer would stay held"
        # An answer that is not understood is worse than no answer: the API has changed.
        state: Literal["warn", "fail"] = "fail" if provider.not_understood else "warn"
        remedy = "Check the history URL of the block, and the key's rights; upgrade prefect-imagegen."
        return Check("history", state, text, remedy)
    return Check("history", "ok", "it can be read, so that the fate of calls without an answer can be told")


def _limits(provider: ProviderSettings) -> Check:
    in_flight = (
        provider.max_in_flight
        or len(provider.endpoints) * (provider.endpoint_limit or DEFAULT_LIMIT)
        or DEFAULT_IN_FLIGHT
    )
    rate = f"{provider.requests_per_minute:g} requests a minute" if provider.requests_per_minute else "no rate limit"
    text = f"at most {in_flight} calls in flight, {rate}"
    if resource is not None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        needed = _FILES_PER_CALL * in_flight + _FILES_BESIDE
        if 0 <= files < needed:
            remedy = f"Run `ulimit -n {needed}` first, or lower --max-in-flight."
            return Check("limits", "warn", f"{text}; only {files} files may be open, {needed} are needed", remedy)
    return Check("limits", "ok", text)
