"""Tests of autoforward/net."""
