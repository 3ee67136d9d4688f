"""What `make` runs: an engine for demo and tests, and the demo. Only the standard library."""
