"""Which container is which: the labels that count, and who may have whose session. Pure."""
