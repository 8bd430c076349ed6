"""``dreamer-lpm compare``: methods x arms x seeds on this machine, and a report of who the TV captures."""

from dreamer_lpm.compare.command import main

__all__ = ["main"]
