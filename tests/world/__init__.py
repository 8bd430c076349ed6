"""Tests of the world model."""
