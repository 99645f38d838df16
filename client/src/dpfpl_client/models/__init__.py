"""Frozen vision-language models: loading, image features, text towers, scorers."""
