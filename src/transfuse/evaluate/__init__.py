"""Items in, per-item scores out, means with intervals."""
