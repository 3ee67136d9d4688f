"""The control socket between commands and the supervisor, and starting the supervisor."""
