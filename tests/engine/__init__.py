"""Tests of autoforward/engine."""
