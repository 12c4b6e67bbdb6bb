"""Checks of puts, create-only puts and removals: what two clients of one store see of each other's writes."""

from prefect_imagegen.store.contract.bench import Bench, Outcome, all_of

_WRITERS, _ROUNDS = 16, 5


async def create_only(bench: Bench) -> Outcome:
    """A second create-only put of the same object, by another client, is refused."""
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


async def racing_creators(bench: Bench) -> Outcome:
    """Of many create-only puts of one object at once exactly one succeeds, and its content stays."""
    lost_answers = 0
    for number in range(_ROUNDS):
        path = bench.path(f"race-{number}")
        stores = [(bench.first, bench.second)[writer % 2] for writer in range(_WRITERS)]
        creating = (store.create(path, f"writer {writer}".encode()) for writer, store in enumerate(stores))
        answers = await all_of(creating)
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


async def create_after_put(bench: Bench) -> Outcome:
    """A create-only put of an object that a plain put wrote is refused."""
    path = bench.path("x")
    await bench.first.put(path, b"put")
    created, content = await bench.second.create(path, b"created"), await bench.first.get(path)
    if not created and content == b"put":
        return "ok", "what was put cannot be created"
    return "fail", f"an object that was put could be created anew, and holds {content!r}"


async def read_after_write(bench: Bench) -> Outcome:
    """A put is read by another client at once, also where it replaces an object."""
    path = bench.path("x")
    for number in range(_ROUNDS):
        data = b"x" * (number + 1)
        await bench.first.put(path, data)
        content, info = await bench.second.get(path), await bench.second.head(path)
        if content != data:
            read = "nothing" if content is None else f"{len(content)} bytes"
            return "fail", f"after a put of {len(data)} bytes another client read {read}"
        if info is None or info.size != len(data):
            return "fail", f"after a put of {len(data)} bytes another client was told {info and info.size}"
    return "ok", "what was put is read by another client at once"


async def delete(bench: Bench) -> Outcome:
    """A removed object is gone, can be removed again, and its path can be written again."""
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


async def absent(bench: Bench) -> Outcome:
    """Reads and listings of an object that does not exist say so, without an error."""
    path = bench.path("nothing")
    answers = await bench.first.get(path), await bench.first.head(path), list(await bench.first.list(path))
    if answers == (None, None, []):
        return "ok", "what is not there is told so"
    return "fail", f"of an object that is not there the store says {answers}"
