"""Tests of autoforward/doctor."""
