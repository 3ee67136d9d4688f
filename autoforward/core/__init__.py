"""Values, errors, settings, safe text and work budgets. Imports nothing else of the product; no I/O."""
