"""Who may say what: what files and labels may say at once, what needs the user's approval (stored by `config/approvals.py`)."""
