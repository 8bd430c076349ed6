"""Tests of the Noisy TV."""
