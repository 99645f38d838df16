"""The life of a run: its folder, state, plan, supervision and result."""
