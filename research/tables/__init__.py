"""The tables of the documentation."""
