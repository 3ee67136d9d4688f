"""Tests of autoforward/core."""
