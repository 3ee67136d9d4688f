"""A container's identity: its own labels, what they claim, names, shared namespaces. Pure."""
