"""Tests of autoforward/agent_protocol."""
