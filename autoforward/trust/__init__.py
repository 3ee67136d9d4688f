"""Permissions: what files and labels may set, and what needs the user's approval (stored by `config/approvals.py`)."""
