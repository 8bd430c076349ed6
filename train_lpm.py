"""Train Dreamer-LPM:  python3 train_lpm.py --steps 10000 --noisy-tv   (all options: --help)"""

import sys

from dreamer_lpm.cli import train_lpm

if __name__ == "__main__":
    sys.exit(train_lpm())
