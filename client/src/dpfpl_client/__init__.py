"""What a site installs: the thin Flower ClientApp and, with the extra ``[agent]``, the site agent."""

__all__: list[str] = []
