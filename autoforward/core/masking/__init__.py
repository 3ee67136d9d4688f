"""Mask secrets in command lines: names, shapes, and the line as shown. Pure."""
