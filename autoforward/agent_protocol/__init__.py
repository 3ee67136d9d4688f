"""The agent's wire protocol (agent/PROTOCOL.md), without I/O: frames, encoder, decoder."""
