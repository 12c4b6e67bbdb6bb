"""A store object on S3 look-alikes: it just works, or the user is told what the store answered and what to do."""

import asyncio
import logging
from collections.abc import Callable

import pytest

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.doctor import examine
from prefect_imagegen.core.errors import RefusedError, StoreError
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.object_store import FsspecObjectStore, open_object_store
from prefect_imagegen.store.store_kind import claim_kind, read_kind

from . import faults, listings
from .conftest import LookAlike
from .proxy import Fault

pytestmark = [pytest.mark.anyio, pytest.mark.s3]
IMPLIES = "A header you provided implies functionality that is not implemented"
REFUSALS = [
    (501, "NotImplemented", IMPLIES),
    (400, "InvalidRequest", "Value for x-amz-checksum-crc32 header is invalid"),
    (400, "InvalidArgument", "Unsupported header 'x-amz-sdk-checksum-algorithm' received for this API call."),
    (411, "MissingContentLength", "You must provide the Content-Length HTTP header."),
    (403, "SignatureDoesNotMatch", "The request signature we calculated does not match."),
]


@pytest.fixture
def opened():
    stores: list[FsspecObjectStore] = []

    def start(target: LookAlike) -> FsspecObjectStore:
        stores.append(open_object_store(target.url, target.options))
        return stores[-1]

    yield start
    for store in stores:
        store.close()


async def failure(call) -> StoreError:
    with pytest.raises(StoreError) as raised:
        await call
    assert raised.value.remedy
    assert ".." not in raised.value.message
    return raised.value


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize(("status", "code", "message"), REFUSALS)
async def test_checksums_that_are_refused_are_left_out(
    status, code, message, tls, look_alike: Callable[..., LookAlike], opened, caplog
) -> None:
    """A store that refuses checksum headers or trailers is used without them, which is said once; create-only holds."""
    caplog.set_level(logging.WARNING)
    target = look_alike(faults.RefusesChecksums(status, code, message), tls=tls)
    store, twin = opened(target), opened(target)
    await claim_kind(store, "real")
    assert await read_kind(twin, "real") == "real"
    answers = await asyncio.gather(*((store, twin)[n % 2].create("x", b"%d" % n) for n in range(8)))
    assert answers.count(True) == 1
    assert await twin.get("x") == b"%d" % answers.index(True)
    said = [record.getMessage() for record in caplog.records if "checksums" in record.getMessage()]
    assert len(said) == 1
    assert code in said[0]
    refused = [call for call in target.proxy.calls if call.is_put and "x-amz-sdk-checksum-algorithm" in call.headers]
    asked = len(refused)
    assert await opened(target).create("y", b"1") is True
    assert len([call for call in target.proxy.calls if call.is_put and call.headers.get("x-amz-trailer")]) <= asked


async def test_reads_that_ask_for_no_checksums(look_alike, opened) -> None:
    """A store that refuses to be asked for checksums is read without."""
    store = opened(look_alike(faults.RefusesChecksumMode()))
    await store.put("x", b"1")
    assert await store.get("x") == b"1"


@pytest.mark.parametrize("wrong", [faults.RefusesPuts(501, "NotImplemented", IMPLIES), faults.RefusesPuts(400, "X")])
async def test_puts_that_are_refused_altogether(wrong: Fault, look_alike, opened) -> None:
    """A store that takes no put at all is never said to refuse create-only puts: what it answered is told."""
    store = opened(look_alike(wrong))
    for write in (store.create, store.put):
        error = await failure(write("x", b"1"))
        assert error.kind == "store_refused"
        assert wrong.refusal.body.split(b"<Code>")[1].split(b"<")[0].decode() in error.message
        assert "create-only" not in error.message


@pytest.mark.parametrize(
    ("status", "code"), [(501, "NotImplemented"), (400, "InvalidRequest"), (400, "InvalidArgument")]
)
@pytest.mark.parametrize("also", [[], [faults.RefusesChecksums(501, "NotImplemented")]], ids=["", "and checksums"])
async def test_conditions_that_are_refused_are_named(status, code, also, look_alike, opened) -> None:
    """Where a plain put is taken and the same one with a condition is not, it is the condition; no probe is left."""
    target = look_alike(*also, faults.RefusesConditions(status, code))
    store = opened(target)
    error = await failure(store.create("store.json", b"1"))
    assert error.kind == "store_no_create_only"
    assert f"{status} {code}" in error.message
    assert "local path" in error.remedy
    assert list(await store.list("")) == []


async def test_conditions_that_are_ignored_are_refused(look_alike, opened) -> None:
    """A store that overwrites in silence is refused at the first start."""
    with pytest.raises(RefusedError) as raised:
        await claim_kind(opened(look_alike(faults.IgnoresConditions())), "real")
    assert raised.value.kind == "store_no_create_only"
    assert "overwrites" in raised.value.message


async def test_a_conflict_is_no_object(look_alike, opened) -> None:
    """Where racing puts are told of a conflict and nothing is there, they are tried again, not for ever."""
    store = opened(look_alike(faults.RacingPutsConflict(2)))
    assert await store.create("x", b"1") is True
    assert await store.get("x") == b"1"
    assert await store.create("x", b"2") is False
    endless = opened(look_alike(faults.RacingPutsConflict(10**9)))
    error = await failure(endless.create("y", b"1"))
    assert error.kind == "store_busy"
    assert "409 ConditionalRequestConflict" in error.message


async def test_framing_that_is_kept_is_seen_before_anything_is_paid(look_alike, opened) -> None:
    """A store that takes the framing of a put for its content is refused, with the setting that helps, and it does."""
    target = look_alike(faults.KeepsFraming(), tls=True)
    with pytest.raises(RefusedError) as raised:
        await claim_kind(opened(target), "real")
    assert raised.value.kind == "store_altered"
    assert "when_required" in raised.value.remedy
    target.options["config_kwargs"] = {"request_checksum_calculation": "when_required"}
    await claim_kind(opened(target), "real")


TOLD = {
    "region": (faults.Redirects(301, "PermanentRedirect"), "store_region", "region_name"),
    "region, named": (
        faults.Redirects(301, "PermanentRedirect", **{"x-amz-bucket-region": "eu-west-1"}),
        "store_region",
        "region_name",
    ),
    "signed for another region": (
        faults.Answers(400, "AuthorizationHeaderMalformed", "the region is wrong; expecting 'eu-west-1'"),
        "store_region",
        "region_name",
    ),
    "clock": (faults.Answers(403, "RequestTimeTooSkewed", "The difference is too large."), "store_clock", "clock"),
    "quota": (faults.RefusesPuts(403, "QuotaExceeded"), "store_full", "room"),
    "full": (faults.RefusesPuts(507, "InsufficientStorage"), "store_full", "room"),
    "denied": (faults.RefusesPuts(403, "AccessDenied"), "store_read_only", "rights"),
    "locked": (faults.RefusesPuts(405, "MethodNotAllowed"), "store_refused", "docs/guides/stores.md"),
    "error inside 200": (faults.ErrorInside200(always=True), "store_unreachable", "status"),
    "gone away": (faults.RefusesPuts(502, "BadGateway"), "store_unreachable", "status"),
    "no bucket": (faults.RefusesPuts(404, "NoSuchBucket"), "store_not_found", "Create it"),
}


@pytest.mark.parametrize("name", TOLD)
async def test_what_the_store_answered_is_told(name, look_alike, opened) -> None:
    """Each refusal of a store has its own kind and a remedy that fits it; none is taken for another."""
    wrong, kind, remedy = TOLD[name]
    store = opened(look_alike(wrong))
    for write in (store.create, store.put):
        error = await failure(write("x", b"1"))
        assert (error.kind, remedy in error.remedy) == (kind, True), error


async def test_a_busy_store_is_asked_again_and_then_said_to_be_busy(look_alike, opened) -> None:
    """A store that is busy once is asked again; one that stays so is said to be busy, not unreachable."""
    assert await opened(look_alike(faults.SlowsDown(1))).create("x", b"1") is True
    error = await failure(opened(look_alike(faults.SlowsDown(10**9))).put("y", b"1"))
    assert error.kind == "store_busy"
    assert "--max-in-flight" in error.remedy


async def test_doctor_leaves_no_probe_where_it_may_not_list(look_alike) -> None:
    """A store that takes the probe and refuses a later look at it is left as it was."""
    started = look_alike(listings.RefusesLists())
    settings = StoreSettings(started.url, started.options)
    checks = [check async for check in examine(settings, ProviderSettings("sandbox"), RunOptions())]
    assert (checks[0].name, checks[0].state) == ("store", "fail")
    written = {call.key for call in started.proxy.calls if call.is_put}
    removed = {call.key for call in started.proxy.calls if call.method == "DELETE"}
    assert written == removed != set()
