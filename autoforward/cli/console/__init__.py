"""What commands share: output, progress, errors, targets, the supervisor's client, completion."""
