"""The benchmark: our lanes and the mechanisms of others, on a real engine, in one run. `python -m bench --help`."""
