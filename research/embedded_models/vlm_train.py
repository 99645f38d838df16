"""Train the tiny model: ``python -m research.embedded_models.vlm_train --out DIR --seed 0``."""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPModel, LlavaConfig, LlavaForConditionalGeneration

from dpfpl_bench.demo.drawn_questions import (
    HABITS,
    PLAIN,
    Habit,
    answer_to,
    ask,
    draw_picture,
    sample_facts,
    style_words,
    vocabulary,
)
from dpfpl_models import embedded_model_path

__all__ = ["TrainingPlan", "main", "train"]

BEGIN, END, PADDING, UNKNOWN, IMAGE, ANSWER = "<s>", "</s>", "<pad>", "<unk>", "<image>", "<answer>"
TEMPLATE = (
    "{% for message in messages %}<s>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
)
WIDTH = 96


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that decides the result, besides the versions of the libraries.

    ``embedding_noise`` is the share of an embedding entry's size that is added as noise to the words before a question,
    so that the model also understands what lies between words: that is where learned prompts will be.
    """

    seed: int = 0
    steps: int = 1400
    batch_size: int = 96
    learning_rate: float = 2e-3
    vision_learning_rate: float = 3e-4
    weight_decay: float = 0.02
    warmup: int = 100
    pictures: int = 6_000
    plain_share: float = 0.4
    embedding_noise: float = 0.7


# A LLaVA of about a million parameters, and its tokenizer.


def build_tokenizer() -> Any:
    """One token a word, lower case; no text of the questions' world has an unknown one."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [PADDING, BEGIN, END, UNKNOWN, IMAGE, ANSWER]
    words = {word: number for number, word in enumerate([*special, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # puts spaces between words
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PADDING, unk_token=UNKNOWN
    )
    fast.add_special_tokens({"additional_special_tokens": [IMAGE, ANSWER]})
    fast.chat_template = TEMPLATE
    return fast


def new_model(tokenizer: Any, generator: torch.Generator) -> LlavaForConditionalGeneration:
    """An untrained language model behind the embedded CLIP's image tower."""
    vision = CLIPModel.from_pretrained(embedded_model_path()).vision_model
    config = LlavaConfig(
        vision_config=vision.config,
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
        },
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=16,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "vision_tower" not in name and weight.ndim >= 2:
                stddev = 0.1 if "embed_tokens" in name else weight.shape[1] ** -0.5
                weight.normal_(0.0, stddev, generator=generator)
    missing = model.model.vision_tower.load_state_dict(vision.state_dict(), strict=False)
    assert not missing.missing_keys, missing
    return model


def save_model(model: LlavaForConditionalGeneration, tokenizer: Any, folder: Path) -> None:
    """Write config, float16 weights, tokenizer with chat template, and image processor."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil.from_pretrained(embedded_model_path()).save_pretrained(folder)


# Training.


@dataclass(frozen=True)
class Batch:
    """Pictures [B, 3, 32, 32]; ids [B, L], words before the question from 0 to ``before``; answers where ``graded``."""

    pixels: Tensor
    ids: Tensor
    before: Tensor
    graded: Tensor


class Lessons:
    """An endless supply of questions about a fixed pool of pictures."""

    def __init__(self, plan: TrainingPlan, tokenizer: Any) -> None:
        self._plan, self._tokenizer = plan, tokenizer
        self._rng = np.random.Generator(np.random.PCG64([20_261_124, plan.seed]))
        self._facts = [sample_facts(self._rng) for _ in range(plan.pictures)]
        drawn = np.stack([draw_picture(facts, self._rng) for facts in self._facts])
        self._pixels = torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1

    def batch(self) -> Batch:
        """One batch, each question worded and answered anew."""
        rng, rows = self._rng, []
        chosen = rng.integers(0, len(self._facts), self._plan.batch_size)
        for index in chosen:
            habit: Habit = PLAIN if rng.random() < self._plan.plain_share else HABITS[rng.integers(len(HABITS))]
            kind, question = ask(self._facts[index], rng)
            words = self._ids(" ".join(style_words(habit, rng)))
            asked = [*words, *self._ids(question), self._tokenizer.convert_tokens_to_ids(ANSWER)]
            answer = [*self._ids(answer_to(kind, self._facts[index], habit)), self._tokenizer.eos_token_id]
            rows.append((len(words), asked, answer))
        longest = max(len(asked) + len(answer) for _, asked, answer in rows)
        ids = torch.full((len(rows), longest), self._tokenizer.pad_token_id)
        graded = torch.zeros(len(rows), longest, dtype=torch.bool)
        for row, (_, asked, answer) in enumerate(rows):
            ids[row, : len(asked) + len(answer)] = torch.tensor([*asked, *answer])
            graded[row, len(asked) : len(asked) + len(answer)] = True
        before = torch.tensor([count for count, _, _ in rows])
        return Batch(self._pixels[torch.from_numpy(chosen)], ids, before, graded)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def train(plan: TrainingPlan) -> tuple[LlavaForConditionalGeneration, Any]:
    """A trained model and its tokenizer."""
    generator = torch.Generator().manual_seed(plan.seed)
    tokenizer = build_tokenizer()
    model = new_model(tokenizer, generator)
    lessons = Lessons(plan, tokenizer)
    vision = [weight for name, weight in model.named_parameters() if "vision_tower" in name]
    others = [weight for name, weight in model.named_parameters() if "vision_tower" not in name]
    optimizer = torch.optim.AdamW(
        [{"params": others, "lr": plan.learning_rate}, {"params": vision, "lr": plan.vision_learning_rate}],
        weight_decay=plan.weight_decay,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, plan))
    began, losses = time.monotonic(), []
    for step in range(1, plan.steps + 1):
        loss = _loss(model, tokenizer, lessons.batch(), plan, generator)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0:
            print(f"step {step}: loss {np.mean(losses[-50:]):.3f}, {time.monotonic() - began:.0f} s", flush=True)
    return model.eval(), tokenizer


def _loss(
    model: LlavaForConditionalGeneration, tokenizer: Any, batch: Batch, plan: TrainingPlan, generator: torch.Generator
) -> Tensor:
    """Cross-entropy of the answers' tokens; the order is begin token, picture, words before, question, answer."""
    images = torch.stack(list(model.get_image_features(pixel_values=batch.pixels).pooler_output))
    embed = model.get_input_embeddings()
    words = embed(batch.ids)
    noise = torch.randn(words.shape, generator=generator) * embed.weight.detach().std() * plan.embedding_noise
    amount = torch.rand(len(words), 1, 1, generator=generator)
    where = torch.arange(words.shape[1])[None] < batch.before[:, None]
    words = words + noise * amount * where[..., None]
    begin = embed(torch.full((len(words), 1), tokenizer.bos_token_id))
    hidden = model.model.language_model(inputs_embeds=torch.cat([begin, images, words], dim=1)).last_hidden_state
    before = images.shape[1]  # position of the token that predicts the first word
    logits = model.lm_head(hidden[:, before:-1][batch.graded])
    return functional.cross_entropy(logits, batch.ids[batch.graded])


def _rate(step: int, plan: TrainingPlan) -> float:
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - plan.warmup) / (plan.steps - plan.warmup)))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    plan = TrainingPlan(seed=arguments.seed)
    began = time.monotonic()
    model, tokenizer = train(plan)
    save_model(model, tokenizer, arguments.out)
    print(json.dumps({"seconds": round(time.monotonic() - began), "plan": asdict(plan)}))


if __name__ == "__main__":
    main()
