"""Host sockets and their kernel state: bound ports, the event loop, write buffers, peer credentials, file changes."""
