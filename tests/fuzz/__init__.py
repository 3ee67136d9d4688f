"""Fuzzing of everything that reads bytes out of a container: `python -m tests.fuzz`, or `make fuzz`."""
