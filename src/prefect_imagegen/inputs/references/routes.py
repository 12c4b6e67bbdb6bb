"""How references reach the API: public ones by their own URL, others presigned, uploaded, or inside the call.

Presigned URLs and the addresses of uploads go into the body of the call and into this machine's cache, nowhere else.
"""

import asyncio
import logging
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from prefect_imagegen.core import layout
from prefect_imagegen.core.choices import CheckReferences, ReferenceTransport
from prefect_imagegen.core.errors import ProviderError, RefusedError, StoreError
from prefect_imagegen.core.images.image import upright_size
from prefect_imagegen.core.images.reference_pictures import media_type, normalised
from prefect_imagegen.core.policy.outcomes import OUTCOMES
from prefect_imagegen.core.redact import redact, traceback_of
from prefect_imagegen.core.request.references import (
    BusyReason,
    family,
    is_looked_at,
    is_web,
    unfit,
)
from prefect_imagegen.core.request.request import GenerationRequest, Reference
from prefect_imagegen.inputs.references.reader import ReferenceReader, ReferenceReadError
from prefect_imagegen.net.guard import reach_of_host
from prefect_imagegen.ports import ObjectStore, Provider

_UPLOADS = 4
"""Uploads at the same time; each holds a picture and its base64 form in memory."""
_REMEMBERED = 10_000
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RouteOptions:
    """The chosen transport, the account whose uploads are used, and whether the provider runs on this machine.

    `bytes_only`: the provider gets bytes, never URLs, not even public ones. `check`: which references must be decoded
    before they are sent.
    """

    transport: ReferenceTransport
    account: str
    provider_is_local: bool
    bytes_only: bool = False
    check: CheckReferences = "none"


class ReferenceRoutes:
    """A `ports.References`. `store`: where the references that are sent are stored too, if they are to be."""

    def __init__(
        self, reader: ReferenceReader, provider: Provider, options: RouteOptions, store: ObjectStore | None
    ) -> None:
        self.inline = options.transport == "data-url" or not provider.abilities.uploads
        self._reader = reader
        self._account = provider.account
        self._options = options
        self._reference_store = store
        self._gate = asyncio.Semaphore(_UPLOADS)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._uploaded: set[str] = set()
        """Uploads made in this run."""
        self._found_uploads: set[str] = set()
        """Uploads of earlier runs that were found to still exist."""
        self._stored: set[str] = set()
        self._open_hosts: dict[str, bool] = {}

    async def addresses(self, request: GenerationRequest, *, force_upload: bool) -> Sequence[str]:
        """The address to send for each reference, in order: a URL, or a data URL.

        `force_upload`: upload the reference in this run, because the provider could not fetch its address.
        """
        return [await self._address(reference, force_upload) for reference in request.references]

    async def _address(self, reference: Reference, force_upload: bool) -> str:
        try:
            reference = await self._examined(reference)
            if self._reference_store is not None:
                await self._store(reference, self._reference_store)
            linked = not (force_upload or reference.changes or self._options.bytes_only)
            url = await self._link(reference) if linked else None
            if url is not None:
                return url
            if self.inline:
                return _data_url(await self._to_send(reference))
            return await self._upload(reference, force_upload)
        except ReferenceReadError as error:
            kind = "reference_busy" if error.is_busy else "reference_unreadable"
            raise ProviderError(kind, f"{redact(reference.uri)}: {error}") from error
        except RefusedError as error:
            raise ProviderError("reference_unreadable", str(error)) from error
        except (ProviderError, StoreError):
            raise
        except Exception as error:  # whatever it is, it concerns this row only
            _logger.warning("A reference met an unexpected error: %s\n%s", redact(reference.uri), traceback_of(error))
            text = redact(f"{type(error).__name__} {error}")
            raise ProviderError("reference_unreadable", f"{redact(reference.uri)}: {text}") from error

    async def _examined(self, reference: Reference) -> Reference:
        """The reference with its facts; examined now if the plan could not do it. Raises ReferenceReadError."""
        if reference.facts is not None or not is_looked_at(reference.uri, self._options.check):
            return reference
        facts = (await self._reader.examine([reference.uri], look=True))[reference.uri]
        problem = facts if isinstance(facts, str) else unfit(reference.uri, facts, self._options.transport)
        if isinstance(facts, str) or problem is not None:
            raise ReferenceReadError(problem or "", is_busy=isinstance(problem, BusyReason))
        return replace(reference, facts=facts)

    async def _link(self, reference: Reference) -> str | None:
        """The URL by which the API can fetch the reference; None if there is none, or if it is to be sent as bytes."""
        uri, sha256, presign = reference.uri, reference.sha256, self._options.transport == "presign"
        if is_web(uri):
            signed = await self._reader.cache.signed(uri, sha256) if reference.kind == "sha256" and sha256 else None
            if signed is None:
                return uri if presign or await self._is_open(uri) else None
            return signed if presign else None
        if family(uri) == "file" or self._options.transport not in ("auto", "presign"):
            return None
        if sha256 is not None and not await self._reader.unchanged(uri, sha256):
            raise ReferenceReadError("it has changed since the run was planned; run the same command again")
        url = await self._reader.presign(uri)
        if presign:
            if url is None:
                raise ReferenceReadError("its store makes no presigned URLs; use --reference-transport auto or upload")
            return url
        return url if url is not None and await self._is_open(url) else None

    async def _is_open(self, url: str) -> bool:
        """Whether the API can reach the URL's host: it is public, or both are on this machine."""
        host = urlsplit(url).hostname or ""
        if host not in self._open_hosts:
            try:
                reach = await reach_of_host(host)
            except (OSError, UnicodeError):
                reach = "public"  # a name that does not resolve here may resolve for the API
            self._open_hosts[host] = reach == "public" or (reach == "loopback" and self._options.provider_is_local)
        return self._open_hosts[host]

    async def _upload(self, reference: Reference, force_upload: bool) -> str:
        """The URL of an upload: made in this run, or by an earlier one if it still exists."""
        name = " ".join(filter(None, (reference.sha256, *reference.changes))) or reference.uri
        lock = self._locks.setdefault(name, asyncio.Lock())
        async with lock, self._gate:
            known = await self._reader.cache.upload(self._options.account, name)
            if known is not None and (
                name in self._uploaded or (not force_upload and await self._is_there(name, known))
            ):
                return known
            data = await self._to_send(reference)
            if self._account is None:
                raise ProviderError("upload_failed", f"{redact(reference.uri)}: the provider takes no uploads")
            try:
                url = await self._account.upload(data, media_type(data))
            except ProviderError as error:
                if OUTCOMES[error.kind].scope == "run":
                    raise
                raise ProviderError("upload_failed", f"{redact(reference.uri)}: {error.message}") from error
            await self._reader.cache.keep_upload(self._options.account, name, url)
            _note(self._uploaded, name)
            return url

    async def _is_there(self, name: str, url: str) -> bool:
        """Whether an upload of an earlier run still exists; the provider is asked once in a run."""
        if name not in self._found_uploads and not (self._account and await self._account.has_upload(url)):
            return False
        _note(self._found_uploads, name)
        return True

    async def _to_send(self, reference: Reference) -> bytes:
        """The bytes to send, normalised if they need changes; an unexamined file must at least decode its header."""
        data = await self._reader.read(reference.uri, reference.sha256)
        try:
            if reference.changes:
                return await self._reader.decoding(normalised, data)
            if reference.facts is None or reference.facts.width is None:
                await self._reader.decoding(upright_size, data)
        except Exception as error:  # Pillow raises many types, and all concern this picture only
            raise ReferenceReadError(f"it cannot be made fit to send: {error}") from error
        return data

    async def _store(self, reference: Reference, store: ObjectStore) -> None:
        """Store the original bytes of the reference, once for the same bytes."""
        if (known := reference.sha256) is not None and known in self._stored:
            return
        data = await self._reader.read(reference.uri, known)
        facts = reference.facts or await self._reader.facts(data)
        kind = facts.format or media_type(data).partition("/")[2]
        path = layout.reference(facts.sha256, kind if kind.isalnum() else "bin")
        await store.create(path, data, media_type(data))
        _note(self._stored, facts.sha256)


def _data_url(data: bytes) -> str:
    return f"data:{media_type(data)};base64,{b64encode(data).decode()}"


def _note(names: set[str], name: str) -> None:
    """Add a name to a bounded set; a name that is forgotten only means that its work is done again."""
    if len(names) >= _REMEMBERED:
        names.clear()
    names.add(name)
