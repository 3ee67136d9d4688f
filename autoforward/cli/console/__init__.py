"""What commands share: output, progress, errors, targets, the client of the supervisor, completion."""
