"""Following documentation to the letter: its blocks are taken out of the file, and run as they stand."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STANDING = ("prefect server start", "prefect worker start")
"""Commands that go on until they are ended: their blocks have a terminal of their own."""
_FENCE = re.compile(
    r"(?:^<!-- (?P<marker>snippet: .*?|test-command) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_EXIT = re.compile(r"exit (\d+)$")


def until(look: Callable[[], Any], seconds: float) -> Any:
    """What `look` finds, as soon as it finds something."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return found


@dataclass(frozen=True)
class Block:
    """A fenced block of a document, with what stands in the comment before it, and the headings that it is below."""

    language: str
    code: str
    marker: str = ""
    headings: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """How its last command ends; the marker names what is not 0."""
        match = _EXIT.search(self.marker)
        return int(match[1]) if match else 0

    @property
    def is_standing(self) -> bool:
        return self.code.strip().splitlines()[-1].startswith(STANDING)


def section(path: Path, heading: str) -> list[Block]:
    """The blocks of bash and Python below a heading, up to the next one of its rank; those of subsections too."""
    text = path.read_text()
    match = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert match is not None, f"{path.name} has no section {heading!r}"
    body = text[match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", _FENCE.sub(lambda fence: "\n" * len(fence[0]), body), re.MULTILINE)
    return [block for block in blocks(body[: end.start()] if end else body) if block.language in ("bash", "python")]


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a document, in order."""
    fences = list(_FENCE.finditer(text))
    prose = _FENCE.sub(lambda fence: " " * len(fence[0]), text)
    headings = [
        (match.start(), len(match[1]), match[2]) for match in re.finditer(r"^(#+) (.+?) *$", prose, re.MULTILINE)
    ]
    return [
        Block(
            fence["language"],
            re.sub(rf"^{fence['indent']}", "", fence["code"], flags=re.MULTILINE),
            (fence["marker"] or "").removeprefix("snippet: "),
            _above(headings, fence.start()),
        )
        for fence in fences
    ]


def _above(headings: list[tuple[int, int, str]], position: int) -> tuple[str, ...]:
    """The headings that a position is below, from the document's own to the nearest."""
    path: list[tuple[int, str]] = []
    for start, rank, title in headings:
        if start < position:
            path = [*((above, name) for above, name in path if above < rank), (rank, title)]
    return tuple(title for _, title in path)


@dataclass
class Terminal:
    """Runs blocks one after the other, as somebody who copies them into one shell does.

    `changes`: what is another word on this machine (a port, a folder). What a block exports holds for the next ones.
    """

    folder: Path
    environment: dict[str, str]
    changes: Mapping[str, str]
    standing: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    run: list[str] = field(default_factory=list)
    """What was run, for the test to look at."""

    def follow(self, block: Block, **words: str) -> str:
        """Run a block, `words` in place of its words in capitals; what it prints. A command that fails fails all."""
        code = block.code
        for before, after in self.changes.items():
            code = code.replace(before, after)
        for word, meaning in words.items():
            code = re.sub(rf"\b{word}\b", lambda _, meaning=meaning: meaning, code)
        self.run.append(code)
        if block.is_standing:
            self._start(code)
            return ""
        command = ["bash", "-euo", "pipefail", "-c", f"{code}\nenv -0 > {self.folder}/environment"]
        if block.language == "python":
            command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == block.exit_code, f"{code}\n{done.stdout}\n{done.stderr}"
        if block.language == "bash" and block.exit_code == 0:
            pairs = (self.folder / "environment").read_text().strip("\0").split("\0")
            self.environment = dict(pair.partition("=")[::2] for pair in pairs)
        return done.stdout + done.stderr

    def _start(self, code: str) -> None:
        """In a terminal of its own: what it exports holds there only. It ends with all processes that it started."""
        *before, last = code.strip().splitlines()
        with (self.folder / "standing.log").open("ab") as log:
            self.standing.append(
                subprocess.Popen(
                    ["bash", "-euo", "pipefail", "-c", "\n".join([*before, f"exec {last}"])],
                    cwd=self.folder,
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def end(self, process: "subprocess.Popen[bytes]", number: int = signal.SIGTERM) -> None:
        """End one of the standing ones."""
        process.send_signal(number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def close(self) -> None:
        """End all of them."""
        for process in reversed(self.standing):
            if process.poll() is None:
                self.end(process)
