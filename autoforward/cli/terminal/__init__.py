"""The live table of `list --watch`: feed, rates, keys, screen."""
