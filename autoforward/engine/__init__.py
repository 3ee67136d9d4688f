"""The only package that knows Docker: endpoints, contexts, transports, client, exec streams, targets, teardown."""
