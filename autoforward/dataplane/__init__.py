"""The thread that carries every byte: listeners, relays, far ends, splicing, UDP."""
