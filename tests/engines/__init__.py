"""Ways to reach an engine, made by the tests for the tests of tests/docker/test_engines.py."""
