"""What decides whether forwarding works here: `look*` modules look, `host` and `container` judge, `findings` is the verdict."""
