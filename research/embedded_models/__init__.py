"""How the embedded model was made: pictures drawn by the script itself, their captions, contrastive training."""

__all__: list[str] = []
