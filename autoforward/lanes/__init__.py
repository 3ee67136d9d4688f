"""Ways into a container: the probe, relay tools, the shell watcher, and installing the agent."""
