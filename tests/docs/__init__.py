"""Documents and examples against the code: SPEC.md, README.md, docs/, the editors' examples."""
