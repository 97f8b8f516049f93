"""What a user would do instead of training: the routes that every result is compared with."""
