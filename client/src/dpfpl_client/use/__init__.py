"""A learned prompt in use: predictions, an HTTP page, an export."""
