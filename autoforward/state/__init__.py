"""The state folder: locks, the registry and its document, the buffered registry, the event log."""
