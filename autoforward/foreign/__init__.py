"""Files and folders that a container can write or that may hang: opened without blocking, parsed within bounds."""
