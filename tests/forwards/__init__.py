"""Tests of autoforward/forwards."""
