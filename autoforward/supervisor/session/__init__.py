"""One attached container: its actor, lane choice, openings, agent link, configuration reload."""
