"""Measurements and trainings behind the documentation and the embedded models. Not a distribution."""
