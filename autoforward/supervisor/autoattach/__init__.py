"""`autoforward watch`: which containers are attached to, and a compose project's services."""
