"""Tests of the curiosities: what every bonus must keep, what each promises, and known mistakes that must be caught."""
