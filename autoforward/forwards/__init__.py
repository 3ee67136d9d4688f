"""From a snapshot to forwards: rules, plan, reconcile, allocate, bound listener and row; claims between sessions."""
