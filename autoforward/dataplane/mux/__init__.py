"""Many streams on one carrier: the multiplexer, its streams, the exec stream, the trunk and its handshake."""
