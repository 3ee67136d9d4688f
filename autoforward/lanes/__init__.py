"""Ways into a container: the probe, relay tools, the shell watcher, and the agent's installation."""
