"""Tests of autoforward/service."""
