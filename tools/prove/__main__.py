"""python -m tools.prove: see command.py."""

import sys

from tools.prove.command import main

if __name__ == "__main__":
    sys.exit(main())
