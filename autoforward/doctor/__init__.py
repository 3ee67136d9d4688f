"""The checks of `autoforward doctor`, on the host and in the container."""
