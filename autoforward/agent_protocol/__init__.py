"""The agent's wire protocol (SPEC.md, "Agent protocol"), without I/O: frames, encoder, decoder."""
