"""Tests of autoforward/detection."""
