"""The daemon: start and end, requests, persistence, the event hub."""
