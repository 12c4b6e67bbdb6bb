"""The checks of the store contract: each tries one thing, and says what it has seen."""

import asyncio
import unicodedata
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from prefect_imagegen.ports import Clock, ObjectStore

T = TypeVar("T")
State = Literal["ok", "warn", "fail", "unknown"]
Outcome = tuple[State, str]
"""How a check came out, and what was seen."""

PATIENCE_S = 20.0
TOLERATED_LAG_S = 15.0
"""So long a run asks again for a claim that it knows to exist (executor/claims.py: 0.25 s, doubled six times)."""
_SKEW_S = 60.0
_WRITERS, _ROUNDS = 16, 5
_LARGE = 8 << 20
MANY = 1_100
"""More than one page of S3, which has 1,000."""
_ODD_NAMES = (
    *("a blank.txt", "100%.txt", "%41.txt", "a+b.txt", "a#b.txt", "a=b&c.txt", "a?b.txt", "a;b,c.txt", "a:b.txt"),
    *("~a'b\"c.txt", "a[1]{2}(3).txt", "dots...txt", ".hidden", "...", "日本語🧀.txt", "x" * 200),
    *(unicodedata.normalize(form, "é.txt") for form in ("NFC", "NFD")),
)
_CONDITIONAL = (
    "Use a store with conditional puts (S3, R2, MinIO, GCS, Azure), or a local path; see docs/guides/stores.md."
)
_CONSISTENT = "Use a store that is consistent after a write, without a cache or a replica in between."


@dataclass(frozen=True, slots=True)
class Bench:
    """Where checks are tried: two clients of one store, and a folder that is theirs."""

    first: ObjectStore
    second: ObjectStore
    folder: str
    clock: Clock
    patience: float
    many: int = MANY

    def of(self, name: str) -> "Bench":
        """The bench of one check, with a folder of its own."""
        return replace(self, folder=f"{self.folder}/{name}")

    def path(self, name: str) -> str:
        """The path of an object in the folder."""
        return f"{self.folder}/{name}"


@dataclass(frozen=True, slots=True)
class ContractCheck:
    """One thing that a store has to hold: what it means where it does not, and what is to be done then."""

    name: str
    look: Callable[[Bench], Awaitable[Outcome]]
    meaning: str
    remedy: str


async def _create_only(bench: Bench) -> Outcome:
    path = bench.path("x")
    answers = await bench.first.create(path, b"first"), await bench.second.create(path, b"second")
    content = await bench.second.get(path)
    if answers == (True, False) and content == b"first":
        return "ok", "a second put of the same object is refused, and the first one stays"
    if answers == (True, True):
        return "fail", "a second create-only put was taken, and has overwritten the object"
    if not answers[0]:
        return "fail", "a create-only put of a new object was refused as if it existed"
    return "fail", f"a second create-only put was refused, and the object is now {content!r} instead of b'first'"


async def _racing_creators(bench: Bench) -> Outcome:
    lost_answers = 0
    for number in range(_ROUNDS):
        path = bench.path(f"race-{number}")
        stores = [(bench.first, bench.second)[writer % 2] for writer in range(_WRITERS)]
        creating = (store.create(path, f"writer {writer}".encode()) for writer, store in enumerate(stores))
        answers = await _all_of(creating)
        winners = [writer for writer, won in enumerate(answers) if won]
        content = await bench.first.get(path)
        if len(winners) > 1:
            return "fail", f"{len(winners)} of {_WRITERS} writers at once were each told that they had created it"
        if winners and content != f"writer {winners[0]}".encode():
            return "fail", f"writer {winners[0]} was told that it had created the object, which holds {content!r}"
        if content is None:
            return "fail", f"all of {_WRITERS} writers at once were refused, and nothing was written"
        lost_answers += not winners
    if lost_answers:
        return "warn", f"{lost_answers} of {_ROUNDS} times the writer that won was not told so"
    return "ok", f"of {_WRITERS} writers at once one wins, and its content stays ({_ROUNDS} rounds)"


async def _create_after_put(bench: Bench) -> Outcome:
    path = bench.path("x")
    await bench.first.put(path, b"put")
    created, content = await bench.second.create(path, b"created"), await bench.first.get(path)
    if not created and content == b"put":
        return "ok", "what was put cannot be created"
    return "fail", f"an object that was put could be created anew, and holds {content!r}"


async def _read_after_write(bench: Bench) -> Outcome:
    path = bench.path("x")
    for number in range(_ROUNDS):
        data = b"x" * (number + 1)
        await bench.first.put(path, data)
        content, info = await bench.second.get(path), await bench.second.head(path)
        if content != data:
            seen = "nothing" if content is None else f"{len(content)} bytes"
            return "fail", f"after a put of {len(data)} bytes another client read {seen}"
        if info is None or info.size != len(data):
            return "fail", f"after a put of {len(data)} bytes another client was told {info and info.size}"
    return "ok", "what was put is read by another client at once"


async def _list_after_write(bench: Bench) -> Outcome:
    async def is_listed(path: str) -> bool:
        await bench.first.put(path, b"1")
        return True

    return await _listing_lag(bench, is_listed)


async def _list_after_delete(bench: Bench) -> Outcome:
    async def is_listed(path: str) -> bool:
        await bench.first.put(path, b"1")
        await _seconds_until(bench, path, listed=True)
        await bench.first.delete(path)
        return False

    return await _listing_lag(bench, is_listed)


async def _listing_lag(bench: Bench, change: Callable[[str], Awaitable[bool]]) -> Outcome:
    """How long a listing takes to show what `change` did with a path, which tells whether it is there now."""
    longest = 0.0
    for number in range(3):
        path = bench.path(f"{number}")
        listed = await change(path)
        seconds = await _seconds_until(bench, path, listed=listed)
        if seconds is None:
            return "fail", f"a listing did not show it within {bench.patience:.1f} s"
        longest = max(longest, seconds)
    if not longest:
        return "ok", "the next listing shows it"
    return "warn" if longest <= TOLERATED_LAG_S else "fail", f"a listing shows it after {longest:.1f} s"


async def _all_of(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Wait until all of some calls have ended, then raise the first error: none goes on writing after its check."""
    ended = await asyncio.gather(*calls, return_exceptions=True)
    for one in ended:
        if isinstance(one, BaseException):
            raise one
    return [one for one in ended if not isinstance(one, BaseException)]


async def _seconds_until(bench: Bench, path: str, *, listed: bool) -> float | None:
    """Seconds until a listing has a path, or has it no more; 0 if the first one was right, None if none was."""
    begin = bench.clock.monotonic()
    pause = 0.05
    while (path in [info.path for info in await bench.second.list(bench.folder)]) is not listed:
        waited = bench.clock.monotonic() - begin
        if waited >= bench.patience:
            return None
        await bench.clock.sleep(min(pause, bench.patience - waited))
        pause *= 2
    return bench.clock.monotonic() - begin if pause > 0.05 else 0.0


async def _odd_names(bench: Bench) -> Outcome:
    paths = [bench.path(name) for name in _ODD_NAMES]
    for path in paths:
        await bench.first.put(path, path.encode())
    listed = [info.path for info in await bench.second.list(bench.folder)]
    wrong = [path for path in paths if path not in listed or await bench.second.get(path) != path.encode()]
    if not wrong and len(listed) == len(paths):
        return "ok", f"{len(paths)} names with blanks, signs and letters of any script come back as they were"
    names = ", ".join(repr(path.removeprefix(f"{bench.folder}/")) for path in wrong) or "names that were not written"
    return "warn", f"do not come back as they were written: {names}"


async def _case(bench: Bench) -> Outcome:
    for name in ("name", "Name"):
        await bench.first.put(bench.path(name), name.encode())
    contents = [await bench.second.get(bench.path(name)) for name in ("name", "Name")]
    if contents == [b"name", b"Name"]:
        return "ok", "names that differ in upper and lower case are different"
    return "warn", "names that differ in upper and lower case are the same object"


async def _long_listing(bench: Bench) -> Outcome:
    paths = [bench.path(f"{number:05d}") for number in range(bench.many)]
    gate = asyncio.Semaphore(32)

    async def put(path: str) -> None:
        async with gate:
            await bench.first.put(path, b"1")

    await _all_of(map(put, paths))
    listed = [info.path for info in await bench.second.list(bench.folder)]
    if listed == paths:
        return "ok", f"a listing of {bench.many:,} objects is whole"
    return "fail", f"of {bench.many:,} objects a listing has {len(set(listed) & set(paths)):,}"


async def _siblings(bench: Bench) -> Outcome:
    own = {bench.path("a/b/1"), bench.path("a/b/c/2")}
    for path in (*own, *map(bench.path, ("a/bc/3", "a/b.d/4", "a/b-5"))):
        await bench.first.put(path, b"1")
    listed = {info.path for info in await bench.second.list(bench.path("a/b"))}
    if listed == own:
        return "ok", "a listing of a folder has what lies in it, and nothing else"
    leaked, missing = sorted(listed - own), sorted(own - listed)
    return (
        "fail",
        f"the listing of the folder a/b has {leaked or 'nothing'} too much, and {missing or 'nothing'} too few",
    )


async def _large_object(bench: Bench) -> Outcome:
    data = bytes(range(256)) * (_LARGE // 256)
    path = bench.path("x")
    await bench.first.put(path, data)
    content, info = await bench.second.get(path), await bench.second.head(path)
    if content == data and info is not None and info.size == len(data):
        return "ok", f"{_LARGE >> 20} MiB come back byte for byte"
    seen = "nothing" if content is None else f"{len(content):,} bytes"
    return "fail", f"of {len(data):,} bytes came back {seen}" + (", which differ" if content != data else "")


async def _empty_object(bench: Bench) -> Outcome:
    path = bench.path("x")
    await bench.first.put(path, b"")
    content, info = await bench.second.get(path), await bench.second.head(path)
    if content == b"" and info is not None and info.size == 0:
        return "ok", "an object without content is kept"
    return "fail", f"an object without content came back as {content!r}"


async def _content_type(bench: Bench) -> Outcome:
    path = bench.path("x.png")
    await bench.first.put(path, b"1", "image/png")
    info = await bench.second.head(path)
    if info is None or info.content_type is None:
        return "unknown", "the store tells no content type"
    if info.content_type == "image/png":
        return "ok", "an object has the content type that it was written with"
    return "warn", f"an object that was written as image/png is {info.content_type}"


async def _delete(bench: Bench) -> Outcome:
    path = bench.path("x")
    await bench.first.put(path, b"1")
    await bench.first.delete(path)
    if await bench.second.get(path) is not None:
        return "fail", "an object that was removed is still read"
    await bench.second.delete(path)
    await bench.first.put(path, b"2")
    if await bench.second.get(path) != b"2":
        return "fail", "what was written after a removal is not read"
    return "ok", "a removed object is gone, and may be removed twice and written again"


async def _absent(bench: Bench) -> Outcome:
    path = bench.path("nothing")
    seen = await bench.first.get(path), await bench.first.head(path), list(await bench.first.list(path))
    if seen == (None, None, []):
        return "ok", "what is not there is told so"
    return "fail", f"of an object that is not there the store says {seen}"


async def _clock(bench: Bench) -> Outcome:
    path = bench.path("x")
    await bench.first.put(path, b"1")
    info = await bench.first.head(path)
    if info is None or info.modified is None:
        return "unknown", "the store tells no times"
    skew = (bench.clock.now() - info.modified).total_seconds()
    if abs(skew) <= _SKEW_S:
        return "ok", f"this machine and the store differ by less than {_SKEW_S:.0f} s"
    return "warn", f"this machine is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the store"


_PAID_TWICE = "Nothing keeps two runs from paying for the same image: no run may use this store."
_UNSEEN = (
    "Claims are read by name, so nothing is paid twice; what other runs have just done may be looked up once more."
)
CHECKS = (
    ContractCheck("create-only", _create_only, _PAID_TWICE, _CONDITIONAL),
    ContractCheck("racing-creators", _racing_creators, _PAID_TWICE, _CONDITIONAL),
    ContractCheck("create-after-put", _create_after_put, _PAID_TWICE, _CONDITIONAL),
    ContractCheck(
        "read-after-write", _read_after_write, "A run reads claims and images that are not what it wrote.", _CONSISTENT
    ),
    ContractCheck("list-after-write", _list_after_write, _UNSEEN, _CONSISTENT),
    ContractCheck(
        "list-after-delete",
        _list_after_delete,
        "Removed events are listed and looked for in vain; nothing is lost by it.",
        _CONSISTENT,
    ),
    ContractCheck(
        "odd-names",
        _odd_names,
        "Runs use none of these names; what you publish under such names would not be found.",
        "Keep to letters, digits, '-', '_' and '.' in the names of what you publish, and in --store.",
    ),
    ContractCheck(
        "case",
        _case,
        "Runs use no names that differ in nothing else; what you publish under such names would be overwritten.",
        "Do not tell names apart by upper and lower case.",
    ),
    ContractCheck(
        "long-listing",
        _long_listing,
        "A run would not see all that was paid before, and `verify` would miss images.",
        "Use a store whose listings go on after the first page.",
    ),
    ContractCheck(
        "siblings",
        _siblings,
        "A run would take files of its neighbours for its own.",
        "Use a store that lists by prefix as S3 does.",
    ),
    ContractCheck(
        "large-object",
        _large_object,
        "Large images would be lost after they were paid.",
        "Raise the size limit of the store, or of the proxy before it.",
    ),
    ContractCheck(
        "empty-object",
        _empty_object,
        "Empty files of datasets cannot be kept; runs write none.",
        "Use a store that takes empty objects, if you publish any.",
    ),
    ContractCheck(
        "content-type",
        _content_type,
        "Browsers may download images instead of showing them; runs do not go by it.",
        "Look at the settings of the store, or of the proxy before it.",
    ),
    ContractCheck(
        "delete",
        _delete,
        "Events that were absorbed and claims that are over would stay for ever; nothing is paid twice.",
        "Allow the credentials to remove objects, and look for a retention rule on the bucket.",
    ),
    ContractCheck(
        "absent",
        _absent,
        "A run cannot tell what is new from what is out of reach.",
        "Allow the credentials to list the bucket (s3:ListBucket): without it S3 says 403 of what is not there.",
    ),
    ContractCheck(
        "clock",
        _clock,
        "Signatures are refused from 15 minutes on, and request histories are searched by time.",
        "Set both clocks right (NTP).",
    ),
)
"""All of them, in the order in which they are tried."""
