"""Tests of autoforward/dataplane."""
