"""Tests of autoforward/config."""
