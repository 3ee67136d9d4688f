"""Secrets hidden in command lines: names, shapes, and the line as it may be shown. Pure."""
