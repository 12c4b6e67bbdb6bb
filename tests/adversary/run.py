"""`python tests/adversary/run.py --seed N --trace`, or `--count 100000`: the adversary by hand."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from adversary.runner import main

if __name__ == "__main__":
    sys.exit(main())
