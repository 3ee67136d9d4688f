"""onAutoForward: decide what to open or show on the desktop, and do it."""
