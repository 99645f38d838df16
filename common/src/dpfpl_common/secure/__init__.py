"""Secure aggregation: sites mask what they send, and whoever adds it up learns the sum alone (Bonawitz et al. 2017)."""
