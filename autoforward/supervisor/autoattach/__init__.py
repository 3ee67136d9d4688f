"""`autoforward watch`: which containers and compose services to attach to."""
