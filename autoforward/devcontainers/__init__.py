"""What devcontainer.json says beside the specification's own keys."""
