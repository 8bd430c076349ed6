"""Tests, in the shape of the package; ``tests.probes`` has envs with known answers."""
