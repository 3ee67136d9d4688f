"""Files that a container can write: opened without blocking, read and parsed within bounds."""
