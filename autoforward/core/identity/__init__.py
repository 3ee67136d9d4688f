"""Who a container is: the labels that are its own, what they claim, names, namespaces that it shares. Pure."""
