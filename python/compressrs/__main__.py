"""Entry point of ``python -m compressrs``."""

import sys

from compressrs.cli import main

if __name__ == "__main__":
    sys.exit(main())
