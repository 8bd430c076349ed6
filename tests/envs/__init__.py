"""Tests of ``dreamer_lpm.envs``."""
