"""Train the embedded model: `python -m research.embedded_models.clip_train --out DIR --seed 0`."""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers.trainers import BpeTrainer
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from research.embedded_models.clip_pictures import Pool, build_pool, draw_batch
from research.embedded_models.clip_scenes import (
    FILLER_WORDS,
    facts_of,
    named_scenes,
    sample_scene,
    write_caption,
    write_name,
)

__all__ = ["CONTEXT_LENGTH", "TrainingPlan", "contrastive_loss", "draw_training_batch", "main", "train"]

IMAGE_SIZE = 32
CONTEXT_LENGTH = 64
VOCAB_SIZE = 1200
BOS, EOS, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that decides the result, besides the fonts on the machine and the versions of the libraries.

    Learning rate and difficulty follow a schedule of `steps`; training ends after `stop_after` of them.
    """

    seed: int = 0
    steps: int = 3600
    stop_after: int = 1500
    batch_size: int = 128
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: int = 200
    easy_share: float = 0.35
    pen_digits: int = 1500
    drawings: int = 150
    captions: int = 20_000


# The model and its tokenizer.


def new_model(tokenizer: Any, generator: torch.Generator) -> CLIPModel:
    """An untrained model for this tokenizer; all its randomness comes from `generator`."""
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "projection_dim": 96,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "hidden_act": "gelu",
            "max_position_embeddings": CONTEXT_LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "hidden_act": "gelu",
            "image_size": IMAGE_SIZE,
            "patch_size": 8,
            "projection_dim": 96,
        },
        projection_dim=96,
    )
    model = CLIPModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name == "logit_scale":
                continue
            if weight.ndim >= 2:
                fan_in = weight[0].numel()
                stddev = 0.02 if "embedding.weight" in name and "patch" not in name else fan_in**-0.5
                weight.normal_(0.0, stddev, generator=generator)
            elif name.endswith("class_embedding"):
                weight.normal_(0.0, 0.02, generator=generator)
    return model


def save_model(model: CLIPModel, tokenizer: Any, folder: Path) -> None:
    """Write config, weights, tokenizer and image processor, as plain transformers classes load them."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    ).save_pretrained(folder)


def _byte_letters() -> list[str]:
    """The 256 printable letters that stand for bytes in byte-level encoding."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(rest))]


def train_tokenizer(captions: Iterable[str], vocab_size: int, max_length: int) -> Any:
    """A CLIPTokenizer learned from captions: 512 byte tokens, then merges, then BOS and EOS as the two highest ids.

    The padding token is EOS, so that pooling at the first EOS and causal attention never see padding.
    """
    learner = CLIPTokenizer().backend_tokenizer
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=_byte_letters(),
        end_of_word_suffix=WORD_END,
        special_tokens=[BOS, EOS],
    )
    learner.train_from_iterator(captions, trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    letters = _byte_letters()
    tokens = [*letters, *(letter + WORD_END for letter in letters)]
    merges: list[tuple[str, str]] = []
    for left, right in learned:
        if len(tokens) == vocab_size - 2:
            break
        merges.append((left, right))
        if left + right not in tokens:
            tokens.append(left + right)
    vocab = {token: code for code, token in enumerate([*tokens, BOS, EOS])}
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        unk_token=EOS,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=max_length,
    )


# Training.


@dataclass(frozen=True)
class Batch:
    """Pictures [B, 3, 32, 32] in -1 to 1, the T different captions, and which caption is true of which picture [B, T].

    The captions' ids come in a few pieces [t, L] of rising length, so that little time goes into padding.
    """

    pixels: torch.Tensor
    input_ids: tuple[torch.Tensor, ...]
    true: torch.Tensor


def draw_training_batch(pool: Pool, tokenizer: Any, rng: np.random.Generator, size: int, ease: float = 0.0) -> Batch:
    """Draw `size` scenes and caption half of them; add one caption for each thing that has a name.

    A caption counts as true of every picture whose scene has what the caption states. `ease` in 0 to 1: how simple.
    """
    scenes = [sample_scene(rng, ease) for _ in range(size)]
    captions: dict[str, np.ndarray] = {}
    for scene in named_scenes():
        text, told = write_name(scene, rng, ease)
        captions[text] = facts_of(scene, told)
    for scene in scenes[::2]:
        text, told = write_caption(scene, rng)
        captions[text] = facts_of(scene, told)
    texts = list(captions)
    ids = tokenizer(texts, truncation=True, max_length=CONTEXT_LENGTH)["input_ids"]
    order = sorted(range(len(texts)), key=lambda row: len(ids[row]))
    stated = np.stack([captions[texts[row]] for row in order])  # [T, 9]
    shown = np.stack([facts_of(scene) for scene in scenes])  # [B, 9]
    true = ((stated[None] == -1) | (stated[None] == shown[:, None])).all(axis=2)
    pieces = [
        tokenizer.pad({"input_ids": [ids[row] for row in part]}, return_tensors="pt")["input_ids"]
        for part in np.array_split(order, min(3, len(order)))
    ]
    return Batch(
        pixels=draw_batch(scenes, pool, rng, ease) * 2 - 1,
        input_ids=tuple(pieces),
        true=torch.from_numpy(true).float(),
    )


def contrastive_loss(logits: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy with several right answers: logits [B, T] and true [B, T] of zeros and ones.

    All captions that are true of a picture share its target equally, so no true caption is ever pushed away.
    A picture without a true caption, or a caption without a true picture, is left out of its own direction.
    """

    def one_way(dim: int) -> torch.Tensor:
        truths = true.sum(dim)
        each = -(functional.log_softmax(logits, dim=dim) * true).sum(dim) / truths.clamp(min=1)
        return each.sum() / (truths > 0).sum().clamp(min=1)

    return (one_way(1) + one_way(0)) / 2


def batch_loss(model: CLIPModel, batch: Batch) -> torch.Tensor:
    """The contrastive loss of one batch."""
    seen = model.visual_projection(model.vision_model(pixel_values=batch.pixels).pooler_output)
    # No attention mask: attention is causal and pooling takes the first EOS, so padding behind it is never seen.
    pooled = torch.cat([model.text_model(input_ids=ids).pooler_output for ids in batch.input_ids])
    read = model.text_projection(pooled)
    logits = functional.normalize(seen, dim=1) @ functional.normalize(read, dim=1).T * model.logit_scale.exp()
    return contrastive_loss(logits, batch.true)


def _learning_rate(step: int, plan: TrainingPlan) -> float:
    """Linear warm-up, then a cosine down to zero; a factor of `plan.learning_rate`."""
    warmup = min(plan.warmup, max(1, plan.steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, plan.steps - warmup)))


def _drawn_ahead(pool: Pool, tokenizer: Any, rng: np.random.Generator, plan: TrainingPlan) -> Iterator[Batch]:
    """`plan.stop_after` batches, simple ones first; the next is drawn in a second thread while this one is in use."""
    with ThreadPoolExecutor(max_workers=1) as pencil:
        coming = []
        for step in range(plan.stop_after + 1):
            if step < plan.stop_after:
                ease = max(0.0, 1 - step / (plan.easy_share * plan.steps))
                coming.append(pencil.submit(draw_training_batch, pool, tokenizer, rng, plan.batch_size, ease))
            if step:
                yield coming.pop(0).result()


def train(plan: TrainingPlan, out: Path, say: Callable[[str], None]) -> None:
    """Draw the pool, learn the tokenizer, train, and write a folder that transformers loads; `say` gets progress."""
    start = time.monotonic()
    pool = build_pool(plan.seed, plan.pen_digits, plan.drawings)
    say(f"pool: {len(pool.masks)} masks, {pool.num_fonts} fonts, {time.monotonic() - start:.0f} s")
    words = np.random.default_rng([plan.seed, 1])
    corpus = [write_caption(sample_scene(words), words)[0] for _ in range(plan.captions)]
    tokenizer = train_tokenizer([*corpus, *FILLER_WORDS * 3], VOCAB_SIZE, CONTEXT_LENGTH)
    model = new_model(tokenizer, torch.Generator().manual_seed(plan.seed))
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=plan.learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate(step, plan))
    rng = np.random.default_rng([plan.seed, 2])
    model.train()
    recent: list[float] = []
    for step, batch in enumerate(_drawn_ahead(pool, tokenizer, rng, plan), start=1):
        loss = batch_loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        recent = [*recent[-99:], loss.item()]
        if step % 100 == 0 or step == plan.stop_after:
            spent = time.monotonic() - start
            left = spent / step * (plan.stop_after - step)
            say(
                f"step {step}/{plan.stop_after}  loss {np.mean(recent):.3f}  scale {model.logit_scale.exp():.1f}"
                f"  {spent:.0f} s, {left:.0f} s left"
            )
        if step % 500 == 0:
            save_model(model, tokenizer, out)  # so that a run that is cut short leaves something that loads
    model.eval()
    save_model(model, tokenizer, out)
    record = {"plan": asdict(plan), "fonts": pool.num_fonts, "seconds": round(time.monotonic() - start)}
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    train(TrainingPlan(seed=chosen.seed), chosen.out, partial(print, flush=True))


if __name__ == "__main__":
    main()
