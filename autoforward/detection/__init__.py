"""From bytes of /proc/net to listeners, the processes that own them, and known servers. Pure."""
