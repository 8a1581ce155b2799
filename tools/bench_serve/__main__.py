"""python -m tools.bench_serve: see command.py."""

import sys

from tools.bench_serve.command import main

if __name__ == "__main__":
    sys.exit(main())
