"""Who shares a container's networks, and so could read and forge what is plain there: the direct path depends on it."""
