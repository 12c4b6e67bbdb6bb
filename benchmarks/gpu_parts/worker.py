"""The worker as users run it, which also reports its peak memory: `python -m gpu_parts.worker FILE DEVICE serve ...`.

At each SIGUSR1 it writes the peak since the last one to FILE, and resets it. All else is `prefect-imagegen serve`.
"""

import json
import os
import signal
import sys
from pathlib import Path

from gpu_parts import memory


def main(file: Path, device: str, arguments: list[str]) -> None:
    """Serve until a signal stops it."""

    def report(*_: object) -> None:
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps(memory.peak(device)))
        memory.reset(device)
        os.replace(partial, file)  # noqa: PTH105 - the same, and it says that it replaces

    signal.signal(signal.SIGUSR1, report)
    from prefect_imagegen.cli.main import main as command_line

    sys.argv = ["prefect-imagegen", *arguments]
    command_line()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
