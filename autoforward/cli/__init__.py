"""The commands that people type: `autoforward`, `devup`, `devdown`."""
