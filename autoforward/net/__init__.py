"""Host sockets and what the kernel says of them: bound ports, the event loop, write buffers, peer credentials, file changes."""
