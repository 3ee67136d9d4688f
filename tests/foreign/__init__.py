"""Tests of autoforward/foreign."""
