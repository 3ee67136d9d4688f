"""The agent, in C: built here and run as a child, and in containers."""
