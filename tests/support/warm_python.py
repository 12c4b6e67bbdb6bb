"""Processes of our own program without the second and a half that each takes to import what it needs.

`start("-c", code, *arguments)` and `run("-m", module, *arguments)` are what `subprocess.Popen` and `subprocess.run` are
with `[sys.executable, ...]`, but for this: an interpreter that has imported the package already is forked. The child is
a process like any other: it has its own id, memory, streams, folder, environment and signal handlers, and kill -9 ends
it. Prefect is not loaded in it. A test whose rule is about what a process imports, or about how an interpreter starts,
takes `subprocess` all the same.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

_SCRIPT = Path(__file__).with_name("warm_interpreter.py")


class _Interpreter:
    """The interpreter that is forked: one for each process that runs tests."""

    def __init__(self) -> None:
        self._requests, theirs = socket.socketpair()
        with theirs:
            # What else is on the path of the tests is on that of the children: the environment has no say in it later.
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._process = subprocess.Popen([sys.executable, str(_SCRIPT)], stdin=theirs, env=environment)
        atexit.register(self.end)

    def fork(self, command: Mapping[str, Any], descriptors: list[int]) -> None:
        text = json.dumps(command).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))]
        self._requests.sendmsg([len(text).to_bytes(4, "big")], rights)
        self._requests.sendall(text)

    def end(self) -> None:
        self._requests.close()
        self._process.wait()


_interpreter: _Interpreter | None = None


class Process:
    """A child, with the names of `subprocess.Popen`: text comes out of its pipes, and -N is the end by signal N."""

    def __init__(self, command: Mapping[str, Any], stdin: Any, stdout: Any, stderr: Any) -> None:
        global _interpreter  # noqa: PLW0603 - it is one for all tests of this process
        _interpreter = _interpreter or _Interpreter()
        self.args = [command["option"], command["program"], *command["arguments"]]
        self.returncode: int | None = None
        self._theirs: list[int] = []
        self.stdin = self._end_of(stdin, 0)
        self.stdout = self._end_of(stdout, 1)
        self.stderr = self._end_of(stderr, 2)
        said, tell = os.pipe()
        self._report = open(said, encoding="ascii")  # noqa: PTH123, SIM115 - a pipe, closed at the child's end
        self._waiting = threading.Lock()
        try:
            _interpreter.fork(command, [*self._theirs, tell])
        finally:
            for descriptor in (*self._theirs, tell):
                os.close(descriptor)
        self.pid = int(self._report.readline())
        self._ended = threading.Event()
        threading.Thread(target=self._hear, daemon=True).start()

    def _end_of(self, stream: Any, number: int) -> IO[str] | None:
        """Our end of a stream: a pipe's, if one was asked for."""
        if stream == subprocess.PIPE:
            reading, writing = os.pipe()
            ours, theirs = (writing, reading) if number == 0 else (reading, writing)
            self._theirs.append(theirs)
            return open(ours, "w" if number == 0 else "r", encoding="utf-8")  # noqa: PTH123 - a pipe
        if number == 0 and stream is None:
            self._theirs.append(os.open(os.devnull, os.O_RDONLY))
        else:
            self._theirs.append(os.dup(number if stream is None else stream.fileno()))
        return None

    def _hear(self) -> None:
        with self._report:
            # Without a word from its keeper the child's end cannot be known; that is the end of the interpreter too.
            self.returncode = int(self._report.readline() or -signal.SIGKILL)
        self._ended.set()

    def poll(self) -> int | None:
        """The exit status, if the child has ended."""
        return self.returncode if self._ended.is_set() else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, which is told as the exit status. Raises subprocess.TimeoutExpired."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read the pipes to their ends, and wait for the child's. Raises subprocess.TimeoutExpired."""
        texts = {1: "", 2: ""}

        def read(number: int, pipe: IO[str]) -> None:
            with pipe:
                texts[number] = pipe.read()

        pipes = {number: pipe for number, pipe in ((1, self.stdout), (2, self.stderr)) if pipe and not pipe.closed}
        readers = [threading.Thread(target=read, args=item, daemon=True) for item in pipes.items()]
        if self.stdin:
            self.stdin.close()
        end = None if timeout is None else time.monotonic() + timeout
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if end is None else max(0.0, end - time.monotonic()))
        if any(reader.is_alive() for reader in readers):
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        self.wait(None if end is None else max(0.0, end - time.monotonic()))
        return texts[1], texts[2]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the child has ended."""
        if self.poll() is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:  # it ended just now
                self._ended.wait(10)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def start(
    option: str,
    program: str,
    *arguments: object,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    start_new_session: bool = False,
) -> Process:
    """Start code (`-c`) or a module (`-m`) in a process of its own.

    Without `stdin` the child has nothing to read. PYTHONPATH and other variables that an interpreter reads when it
    starts have no effect, but for the actions in PYTHONWARNINGS.
    """
    command = {
        "option": option,
        "program": program,
        "arguments": list(map(str, arguments)),
        "folder": str(cwd or Path.cwd()),
        "environment": dict(os.environ if env is None else env),
        "own_session": start_new_session,
    }
    return Process(command, stdin, stdout, stderr)


def run(
    option: str,
    program: str,
    *arguments: object,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    said: str | None = None,
    timeout: float | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run code or a module to its end, with a text to read; what it printed is in the answer."""
    pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    if said is not None:
        pipes["stdin"] = subprocess.PIPE
    process = start(option, program, *arguments, cwd=cwd, env=env, **pipes)
    try:
        if said is not None and process.stdin:
            process.stdin.write(said)
        stdout, stderr = process.communicate(timeout)
    finally:
        process.kill()
        code = process.wait()
    return subprocess.CompletedProcess(process.args, code, stdout, stderr)
