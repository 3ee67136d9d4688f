"""onAutoForward: what to open or show, and doing it on the desktop."""
