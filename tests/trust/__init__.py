"""Tests of autoforward/trust."""
