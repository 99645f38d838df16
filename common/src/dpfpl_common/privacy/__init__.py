"""The promise: noise, clipping, sampling, accounting and the mechanisms made of them. Pure numpy.

Noise is added in ``one_shot`` (class sums, vote, moment), ``steps`` (noised steps) and ``counts`` (scores); ``noise``
is where they draw it.
"""
