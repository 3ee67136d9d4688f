"""Tests of autoforward/state."""
