"""The user's configuration: files, the session record, and how the layers resolve into it."""
