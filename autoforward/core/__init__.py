"""Values, errors, settings, safe text and work budgets. Imports no other package of autoforward; no I/O."""
