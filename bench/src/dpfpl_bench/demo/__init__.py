"""Real federations on this machine with built-in data."""
