"""Tests of autoforward/lanes."""
