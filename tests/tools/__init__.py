"""The benchmark, the scripts, the fuzzer, and the suite itself."""
