"""The store contract on every store that the tests have, and the proof that each fault is seen by the right check."""

import asyncio
import errno
import secrets
from collections.abc import Sequence

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.store.contract.bench import MANY
from prefect_imagegen.store.contract.checks import CHECKS
from prefect_imagegen.store.contract.contract import Finding, StoreContract
from prefect_imagegen.store.errors import store_error
from prefect_imagegen.store.object_store import FsspecObjectStore, open_object_store

from . import faults, listings
from .proxy import Fault

NAMES = [check.name for check in CHECKS]
CREATING = {"create-only", "racing-creators", "create-after-put"}
EVERY = set(NAMES)
SIGHT: dict[str, tuple[Sequence[Fault], set[str], set[str]]] = {
    # fault: the checks that fail, and those that only warn (or end unknown)
    "ignores conditions": ([faults.IgnoresConditions()], CREATING, set()),
    "501 to conditions": ([faults.RefusesConditions(501, "NotImplemented")], CREATING, set()),
    "400 to conditions": ([faults.RefusesConditions(400, "InvalidRequest")], CREATING, set()),
    "two racing writers win": ([faults.RacingPutsBothWin()], {"racing-creators"}, set()),
    "409 without an end": ([faults.RacingPutsConflict(10**9, "racing-creators")], {"racing-creators"}, set()),
    "reads what was": ([faults.OldReads("read-after-write")], {"read-after-write"}, set()),
    "lists late": ([listings.ListsLate(2, removed=False, path="list-after-write")], set(), {"list-after-write"}),
    "lists never": ([listings.ListsLate(10**9, removed=False, path="list-after-write")], {"list-after-write"}, set()),
    "removed is listed": (
        [listings.ListsLate(2, written=False, path="list-after-delete")],
        set(),
        {"list-after-delete"},
    ),
    "names said encoded": ([listings.PlainNamesSaidEncoded()], set(), {"odd-names"}),
    "folds case": ([listings.FoldsCase()], set(), {"case"}),
    "loses pages": ([listings.ShortPages(20), listings.LosesPages()], {"long-listing"}, set()),
    "leaks siblings": ([listings.LeaksSiblings()], {"siblings"}, set()),
    "cuts large objects": ([faults.CutsLargeObjects()], {"large-object"}, set()),
    "wants a byte": ([faults.RefusesEmptyObjects()], {"empty-object"}, set()),
    "forgets types": ([faults.ForgetsTypes()], set(), {"content-type"}),
    "never removes": ([faults.NeverRemoves()], {"delete", "list-after-delete"}, {"cleanup"}),
    "may not remove": ([faults.RefusesRemoval()], {"delete", "list-after-delete"}, {"cleanup"}),
    "403 for what is absent": (
        [faults.HidesAbsence("GET", "HEAD")],
        {"absent", "delete", "list-after-delete"},
        set(),
    ),
    "another clock": ([faults.WrongClock()], set(), {"clock"}),
    "empty reads": ([faults.EmptyAnswers("large-object")], {"large-object"}, set()),
    "refuses puts": ([faults.RefusesPuts(403, "AccessDenied")], EVERY - {"absent"}, set()),
}
HARMLESS: dict[str, Sequence[Fault]] = {
    "none": [],
    "412 without a body": [faults.SpellsPreconditionOtherwise()],
    "409 twice": [faults.RacingPutsConflict(2, "create")],
    "pages of three": [listings.ShortPages(3)],
    "plain names": [listings.PlainNames()],
    "folds slashes": [listings.FoldsSlashes()],
    "odd etags": [faults.OddETags()],
    "404 for what was removed": [faults.MissesAbsentOnRemoval()],
    "501 to checksums": [faults.RefusesChecksums(501, "NotImplemented")],
    "501 to checksums in reads": [faults.RefusesChecksumMode()],
}


async def findings_of(url: str, options: dict, *, patience: float = 5.0, many: int = 25) -> list[Finding]:
    first, second = (open_object_store(url, options) for _ in range(2))
    try:
        contract = StoreContract(
            first, second, layout.probe(secrets.token_hex(4)), SystemClock(), patience=patience, many=many
        )
        findings = [finding async for finding in contract.findings()]
        return [*findings, await contract.clean()]
    finally:
        first.close()
        second.close()


def by_state(findings: Sequence[Finding]) -> dict[str, set[str]]:
    states = ("ok", "warn", "fail", "unknown")
    return {state: {finding.name for finding in findings if finding.state == state} for state in states}


async def objects_below(store: FsspecObjectStore, folder: str) -> list[str]:
    return [info.path for info in await store.list(folder)]


@pytest.mark.parametrize("kind", ["local", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def test_our_stores_hold_the_contract(kind, request, tmp_path) -> None:
    """Local files, memory and a real S3 server pass every check, and nothing is left behind."""
    url, options = str(tmp_path / "store"), {}
    if kind == "memory":
        url = f"memory://{secrets.token_hex(6)}/store"
    elif kind == "s3":
        s3 = request.getfixturevalue("s3")
        url, options = s3.url(), dict(s3.options)
    findings = asyncio.run(findings_of(url, options, many=MANY))
    assert [finding.name for finding in findings] == [*NAMES, "cleanup"]
    odd = [finding for finding in findings if finding.state != "ok"]
    # Only S3 has content types.
    assert [finding.name for finding in odd] == ([] if kind == "s3" else ["content-type"]), odd
    assert all(finding.state == "unknown" for finding in odd)
    store = open_object_store(url, options)
    assert asyncio.run(objects_below(store, "")) == []
    store.close()


@pytest.mark.s3
@pytest.mark.parametrize("fault", SIGHT)
def test_every_fault_is_seen_by_its_check(fault, look_alike) -> None:
    """A store with one fault fails, or is warned of, in the checks that are about it, and passes all others."""
    wrong, failing, warned = SIGHT[fault]
    started = look_alike(*wrong)
    findings = asyncio.run(findings_of(started.url, started.options, patience=0.5))
    states = by_state(findings)
    assert states["fail"] == failing, [finding for finding in findings if finding.state != "ok"]
    assert states["warn"] | states["unknown"] == warned, [finding for finding in findings if finding.state != "ok"]
    for finding in findings:
        if finding.state != "ok":
            assert finding.observed
            assert finding.meaning
            assert finding.remedy


def test_every_check_has_a_fault_that_it_sees() -> None:
    """No check is there that nothing proves to see."""
    proven = set().union(
        *(failing | warned for wrong, failing, warned in SIGHT.values() if failing != EVERY - {"absent"})
    )
    assert proven == {*NAMES, "cleanup"}


@pytest.mark.s3
@pytest.mark.parametrize("oddity", HARMLESS)
def test_what_does_no_harm_is_no_finding(oddity, look_alike) -> None:
    """A store that is odd in a way that does not matter passes every check."""
    started = look_alike(*HARMLESS[oddity])
    findings = asyncio.run(findings_of(started.url, started.options))
    assert by_state(findings)["ok"] == {*NAMES, "cleanup"}, [finding for finding in findings if finding.state != "ok"]


class _FullAfter(FsspecObjectStore):
    """A store in memory that has no room for one of the objects, and is slow with those that come after it."""

    async def put(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        if path.endswith("long-listing/00000"):
            raise StoreError("store_full", "There is no room left.")
        await asyncio.sleep(0.02)
        await super().put(path, data, content_type)


def test_a_check_that_fails_leaves_nothing_behind() -> None:
    """What is still being written when a check fails is waited for, so that it is removed like all else."""

    async def look() -> tuple[list[Finding], list[str]]:
        opened = _FullAfter(MemoryFileSystem(), f"/{secrets.token_hex(6)}", "memory://full")
        contract = StoreContract(opened, opened, layout.probe("x"), SystemClock(), many=100)
        long_listing = [check for check in CHECKS if check.name == "long-listing"]
        findings = [finding async for finding in contract.findings(long_listing)]
        findings.append(await contract.clean())
        await asyncio.sleep(0.2)
        left = await objects_below(opened, "")
        opened.close()
        return findings, left

    findings, left = asyncio.run(look())
    assert [finding.state for finding in findings] == ["unknown", "fail", "ok"]
    assert left == []


@pytest.mark.parametrize("after", range(0, 2000, 97))
def test_a_store_without_room_is_not_said_to_be_broken(after: int) -> None:
    """Where room runs out nothing is said of what a check looks for, the rest is not tried, and all is removed."""

    class Quota(FsspecObjectStore):
        """A store with room for a limited number of writes."""

        room = after

        async def _run(self, path: str, call, *, writing: bool = False):
            if writing:
                self.room -= 1
                if self.room < 0:
                    raise store_error(self.url, path, OSError(errno.EDQUOT, "Disk quota exceeded"), writing=True)
            return await super()._run(path, call, writing=writing)

    async def look() -> tuple[list[Finding], list[str]]:
        store = Quota(MemoryFileSystem(), f"/{secrets.token_hex(6)}", "memory://quota")
        contract = StoreContract(store, store, layout.probe("x"), SystemClock(), many=100)
        findings = [finding async for finding in contract.findings()]
        store.room = 10**9  # else what removes would count too
        findings.append(await contract.clean())
        left = await objects_below(store, "")
        store.close()
        return findings, left

    findings, left = asyncio.run(look())
    troubled = [finding for finding in findings if finding.state != "ok" and finding.name != "content-type"]
    if troubled:
        first, rest = troubled
        assert (first.state, rest.state, rest.name) == ("unknown", "fail", "contract")
        assert "no room left" in first.observed
        assert "says nothing" in first.meaning
        assert "paying" not in "".join(finding.meaning for finding in findings)
    assert left == []
