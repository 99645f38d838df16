"""Hostile sites against aggregation rules."""
