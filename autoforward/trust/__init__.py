"""Who may say what: what files of the workspace and labels may say at once, and what needs the user's approval."""
