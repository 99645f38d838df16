"""The promise: noise, clipping, sampling, accounting and the mechanisms made of them. Pure numpy."""
