"""`python tests/adversary/run.py --seed N --trace`, or `--count 100000`: the adversary by hand; `--seller queue`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.adversary.queue_api.game import AT_QUEUE
from tests.adversary.runner import AT_SEGMIND, main

if __name__ == "__main__":
    sys.exit(main({"segmind": AT_SEGMIND, "queue": AT_QUEUE}))
