"""Tests of autoforward/desktop."""
