"""The training itself: rounds, exchanges, replies, aggregation."""
