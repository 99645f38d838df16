"""The site agent: the privacy boundary of a site. It alone holds data, model, personal prompt, policy and ledger."""

__all__: list[str] = []
