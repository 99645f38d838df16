"""Secure aggregation: sites mask what they send, so the server learns only the sum (Bonawitz et al. 2017)."""

__all__ = ["STEPS", "SUMS"]

STEPS = ("keys", "shares", "masked", "unmask")
"""The four steps of a sum, in order."""

SUMS = ("rows", "vote", "scores")
"""What is summed in an experiment, each once: class sums, votes, counts of right answers."""
