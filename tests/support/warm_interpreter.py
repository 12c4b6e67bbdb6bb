"""The script of `warm_python.py`: an interpreter that has imported what tests need, and forks one child a command.

It reads commands from the socket on its standard input, each with the file descriptors of the child's three streams and
of the pipe that hears its process id and its exit status. A keeper between this process and the child waits for it.
"""

import array
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import sys
import tempfile
import threading
import types
import warnings
from typing import Any

_HEAVY = (
    *("aiohttp", "anyio", "click", "fastapi", "httpx", "httpx_aiohttp", "PIL.Image", "pydantic", "rich.console"),
    *("pyarrow", "pyarrow.acero", "pyarrow.compute", "pyarrow.csv", "pyarrow.dataset", "pyarrow.parquet", "s3fs"),
    *("starlette", "uvicorn"),
)
_LEFT_OUT = (
    # They load Prefect, which reads the environment and the home of its process when it is imported.
    *("prefect_imagegen.blocks", "prefect_imagegen.tasks", "prefect_imagegen.flows"),
    "prefect_imagegen.cli.main",  # run as `__main__`, which must not have been imported
    "prefect_imagegen.gateway.engines.diffusers",  # needs what is not installed here
)


def load() -> None:
    """Import all of the package that does not need Prefect, and the libraries below it."""
    for name in _HEAVY:
        importlib.import_module(name)
    load_below("prefect_imagegen")
    assert "prefect" not in sys.modules, "it would have the settings of another process"
    assert threading.active_count() == 1, "a fork takes only one thread along"
    os.fsync = lambda _: None  # as in conftest.py
    gc.freeze()


def load_below(package: str) -> None:
    """Import a package and all in it."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        if module.name in _LEFT_OUT:
            continue
        if module.ispkg:
            load_below(module.name)
        else:
            importlib.import_module(module.name)


def receive(requests: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next command, and the descriptors that came with it; None at the end."""
    descriptors = array.array("i")
    data, ancillary, *_ = requests.recvmsg(4, socket.CMSG_SPACE(4 * descriptors.itemsize))
    if not data:
        return None
    for _, _, content in ancillary:
        descriptors.frombytes(content)
    size, text = int.from_bytes(data, "big"), b""
    while len(text) < size:
        text += requests.recv(size - len(text))
    command: dict[str, Any] = json.loads(text)
    return command, descriptors.tolist()


def keep(report: int) -> bool:
    """Fork the child and tell its id and its end; True in the child itself."""
    child = os.fork()
    if child == 0:
        return True
    os.write(report, f"{child}\n".encode())
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    for descriptor in range(3):
        os.close(descriptor)
    _, status = os.waitpid(child, 0)
    os.write(report, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def become(command: dict[str, Any], streams: list[int]) -> None:
    """Turn this fork into what a fresh interpreter would be: streams, session, folder, environment."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if command["own_session"]:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(command["folder"])
    os.environ.clear()
    os.environ.update(command["environment"])
    tempfile.tempdir = None  # it is looked up once
    for action in filter(None, os.environ.get("PYTHONWARNINGS", "").split(",")):
        warnings.simplefilter(action)  # type: ignore[arg-type]
    # Its points are read from the environment when it is imported.
    importlib.reload(sys.modules["prefect_imagegen.failpoints"])
    sys.path[0] = command["folder"] if command["option"] == "-m" else ""


def run(command: dict[str, Any]) -> None:
    """What `python -c` and `python -m` do."""
    sys.argv = [command["option"], *command["arguments"]]
    if command["option"] == "-m":
        runpy.run_module(command["program"], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(command["program"], "<string>", "exec"), main.__dict__)


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork a child for every command. None at the end; in a child, the command that it is to run."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers need nobody to wait for them
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, and for those children that it is meant for
    while (request := receive(requests)) is not None:
        command, (*streams, report) = request
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            if keep(report):
                os.close(report)
                become(command, streams)
                return command
        for descriptor in (*streams, report):
            os.close(descriptor)
    return None


if __name__ == "__main__":
    load()
    with socket.socket(fileno=os.dup(0)) as listening:
        todo = serve(listening)
    if todo is not None:
        run(todo)
