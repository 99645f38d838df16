"""The table of docs/results/models.md: kinds of tokenizers by families, the largest difference to plain transformers.

Run ``python tests/support/tokenizer_table.py`` from the repository's root; it takes a minute.
"""

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from dpfpl_common.errors import DpfplError
from tokenizer_kinds import (
    FAMILIES,
    KINDS,
    SENTENCEPIECE,
    clip_vocabulary,
    our_scores,
    plain_scores,
    write_model,
    write_published_clip,
)

NAMES = ("cat", "golden retriever", "Pneumonia (left)", "no finding", "Nevus, dysplastic", "胸部 X線", "zz x12")
TEXTS = ("a photo of a", "an X-ray of")
PUBLISHED = "CLIP's published vocabulary"


def cell(family: str, kind: str) -> str:
    """The largest difference of a logit, over the sentences of two texts; or the code of the refusal."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if kind == PUBLISHED and family == "altclip":
            return ""  # its positions begin behind the padding's id, which CLIP's vocabulary has last
        if kind == PUBLISHED:
            published = clip_vocabulary()
            if published is None:
                return "not at hand"
            write_published_clip(family, folder, published)
        else:
            ends_only = family.startswith("siglip") and kind != SENTENCEPIECE
            write_model(family, kind, folder, seed=1, frame="end" if ends_only else "both")
        try:
            pairs = [(our_scores(folder, NAMES, text=text), plain_scores(folder, NAMES, text=text)) for text in TEXTS]
        except DpfplError as error:
            return f"`{error.code}`"
        return f"{max(float((ours - plain).abs().max()) for ours, plain in pairs):.1e}"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"| Tokenizer | {' | '.join(f'`{family}`' for family in FAMILIES)} |")
    print("|---" * (len(FAMILIES) + 1) + "|")
    for kind in (PUBLISHED, *KINDS):
        print(f"| {kind} | {' | '.join(cell(family, kind) for family in FAMILIES)} |", flush=True)


if __name__ == "__main__":
    main()
