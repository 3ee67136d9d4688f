"""Tests of autoforward/cli."""
