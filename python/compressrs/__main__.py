"""``python -m compressrs``: the command ``compressrs``."""

import sys

from compressrs.cli import main

sys.exit(main())
