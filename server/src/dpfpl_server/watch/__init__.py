"""What people and probes see while it runs: console, terminal, metrics, doctor."""
