"""What the user asked for: configuration files, the session record, and how the layers resolve into it."""
