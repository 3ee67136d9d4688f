"""The state folder: what the supervisor keeps on disk."""
