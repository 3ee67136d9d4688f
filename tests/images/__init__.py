"""Container images for the tests, made from Debian packages without a registry."""
