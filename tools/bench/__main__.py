"""python -m tools.bench: see bench.py."""

import sys

from tools.bench.bench import main

if __name__ == "__main__":
    sys.exit(main())
