"""Tests of autoforward/ui."""
