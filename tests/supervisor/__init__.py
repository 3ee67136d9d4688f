"""Tests of autoforward/supervisor."""
