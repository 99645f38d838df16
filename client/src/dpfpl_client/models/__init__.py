"""Frozen vision-language models: loading, image features, text towers, scorers.

A new family is an entry in :func:`dpfpl_client.models.loader.load_backbone` whose loader returns a
:class:`dpfpl_client.models.backbone.Backbone`; ``encoders.py`` has three short ones.
"""
