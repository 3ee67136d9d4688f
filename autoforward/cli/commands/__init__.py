"""One file a command of `autoforward`."""
