"""From a snapshot to forwards: rules, plan, reconcile, allocate, the bound listener and its row; claims between sessions."""
