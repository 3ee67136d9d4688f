"""Tests of autoforward/control."""
