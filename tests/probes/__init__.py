"""Envs with known answers, for tests of every part."""
