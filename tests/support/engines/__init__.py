"""Ways to reach an engine, made by the tests for the tests of tests/engine/test_engines.py."""
