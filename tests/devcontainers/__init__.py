"""Tests of autoforward/devcontainers."""
