"""The Dev Container specification: configuration, variables, port attributes, editor settings, the CLI."""
