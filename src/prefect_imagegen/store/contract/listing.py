"""Checks of listings and of the names of objects."""

import asyncio
import unicodedata
from collections.abc import Awaitable, Callable

from prefect_imagegen.store.contract.bench import Bench, Outcome, all_of

TOLERATED_LAG_S = 15.0
"""How long a run keeps asking for a claim that it knows to exist (executor/claims.py: 0.25 s, doubled six times)."""
_ODD_NAMES = (
    *("a blank.txt", "100%.txt", "%41.txt", "a+b.txt", "a#b.txt", "a=b&c.txt", "a?b.txt", "a;b,c.txt", "a:b.txt"),
    *("~a'b\"c.txt", "a[1]{2}(3).txt", "dots...txt", ".hidden", "...", "日本語🧀.txt", "x" * 200),
    *(unicodedata.normalize(form, "é.txt") for form in ("NFC", "NFD")),
)


async def list_after_write(bench: Bench) -> Outcome:
    """A listing shows a new object soon enough."""

    async def is_listed(path: str) -> bool:
        await bench.first.put(path, b"1")
        return True

    return await _listing_lag(bench, is_listed)


async def list_after_delete(bench: Bench) -> Outcome:
    """A listing no longer shows a removed object soon enough."""

    async def is_listed(path: str) -> bool:
        await bench.first.put(path, b"1")
        await _seconds_until(bench, path, listed=True)
        await bench.first.delete(path)
        return False

    return await _listing_lag(bench, is_listed)


async def _listing_lag(bench: Bench, change: Callable[[str], Awaitable[bool]]) -> Outcome:
    """Measure how long a listing takes to show what `change` did.

    `change` writes or removes the object at a path, and says whether the path has to be listed now.
    """
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


async def _seconds_until(bench: Bench, path: str, *, listed: bool) -> float | None:
    """Seconds until a listing shows the path (`listed`), or no longer shows it; 0 if the first listing was right.

    None if that did not happen within the bench's patience.
    """
    begin = bench.clock.monotonic()
    pause = 0.05
    while (path in [info.path for info in await bench.second.list(bench.folder)]) is not listed:
        waited = bench.clock.monotonic() - begin
        if waited >= bench.patience:
            return None
        await bench.clock.sleep(min(pause, bench.patience - waited))
        pause *= 2
    return bench.clock.monotonic() - begin if pause > 0.05 else 0.0


async def odd_names(bench: Bench) -> Outcome:
    """Names with blanks, signs and letters of any script are read and listed as they were written."""
    paths = [bench.path(name) for name in _ODD_NAMES]
    for path in paths:
        await bench.first.put(path, path.encode())
    listed = [info.path for info in await bench.second.list(bench.folder)]
    wrong = [path for path in paths if path not in listed or await bench.second.get(path) != path.encode()]
    if not wrong and len(listed) == len(paths):
        return "ok", f"{len(paths)} names with blanks, signs and letters of any script come back as they were"
    names = ", ".join(repr(path.removeprefix(f"{bench.folder}/")) for path in wrong) or "names that were not written"
    return "warn", f"do not come back as they were written: {names}"


async def case(bench: Bench) -> Outcome:
    """Names that differ only in upper and lower case are different objects."""
    for name in ("name", "Name"):
        await bench.first.put(bench.path(name), name.encode())
    contents = [await bench.second.get(bench.path(name)) for name in ("name", "Name")]
    if contents == [b"name", b"Name"]:
        return "ok", "names that differ in upper and lower case are different"
    return "warn", "names that differ in upper and lower case are the same object"


async def long_listing(bench: Bench) -> Outcome:
    """A listing of more than one page is complete."""
    paths = [bench.path(f"{number:05d}") for number in range(bench.many)]
    gate = asyncio.Semaphore(32)

    async def put(path: str) -> None:
        async with gate:
            await bench.first.put(path, b"1")

    await all_of(map(put, paths))
    listed = [info.path for info in await bench.second.list(bench.folder)]
    if listed == paths:
        return "ok", f"a listing of {bench.many:,} objects is whole"
    return "fail", f"of {bench.many:,} objects a listing has {len(set(listed) & set(paths)):,}"


async def siblings(bench: Bench) -> Outcome:
    """A listing of a folder has what lies below it, and nothing of folders whose names begin alike."""
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
