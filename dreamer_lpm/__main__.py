"""``python -m dreamer_lpm`` is ``dreamer-lpm``."""

import sys

from dreamer_lpm.cli import main

if __name__ == "__main__":
    sys.exit(main())
