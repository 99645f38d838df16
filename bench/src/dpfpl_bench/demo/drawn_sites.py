"""Sites that ask the tiny model about pictures of their own, each with its own way of wording answers."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dpfpl_bench.demo.drawn_questions import (
    Habit,
    Style,
    answer_to,
    ask,
    caption_of,
    draw_picture,
    house_style,
    sample_facts,
)
from dpfpl_client.data import ImageRecord, SiteData
from dpfpl_client.data.decode import ArrayImage, pixel_digest

__all__ = [
    "SITE_HABITS",
    "drawn_captions",
    "drawn_houses",
    "drawn_questions",
    "drawn_sites",
    "with_neighbours",
    "write_questions",
]

SITE_HABITS = (
    Habit("words", "english"),
    Habit("figures", "german"),
    Habit("words", "french"),
    Habit("figures", "french"),
    Habit("words", "german"),
)
"""None is the model's own; the first sites get one each, then they repeat."""


def drawn_sites(count: int, train: int, test: int, seed: int, *, captions: bool = False) -> list[SiteData]:
    """Sites with ``train`` and ``test`` questions each, one a picture; the others' tests are a site's neighbour tests.

    With ``captions`` nothing is asked, and everything about a picture is the answer.

    The pictures are drawn from the seed; the model's training did not use them.
    """
    draw = drawn_captions if captions else drawn_questions
    sites = [
        SiteData(
            draw(SITE_HABITS[number % len(SITE_HABITS)], "train", train, (seed, number, 0)),
            draw(SITE_HABITS[number % len(SITE_HABITS)], "test", test, (seed, number, 1)),
            (),
            (),
            (),
        )
        for number in range(count)
    ]
    return with_neighbours(sites)


def drawn_houses(count: int, train: int, test: int, seed: int) -> list[SiteData]:
    """Sites that share most of a style; the first ones are the same however many there are.

    They have no neighbour tests: what is right at one house is wrong at another, by habit alone.
    """
    return [
        SiteData(
            drawn_questions(house_style(number), "train", train, (seed, number, 0)),
            drawn_questions(house_style(number), "test", test, (seed, number, 1)),
            (),
            (),
            (),
        )
        for number in range(count)
    ]


def with_neighbours(sites: Sequence[SiteData]) -> list[SiteData]:
    """The same sites, each with the other sites' tests as its neighbour tests."""
    return [
        SiteData(
            site.train,
            site.test,
            tuple(record for other in sites if other is not site for record in other.test),
            site.classes,
            site.problems,
            site.unreadable,
        )
        for site in sites
    ]


def write_questions(folder: Path, site: SiteData) -> Path:
    """A site's questions as an administrator would have them: pictures and a file of JSON lines; the file's path."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, record in enumerate((*site.train, *site.test)):
        name = f"pictures/{number:04d}.png"
        record.source.read().save(folder / name)
        asked = {"question": record.question} if record.question else {}
        line = {"image": name, **asked, "answer": record.label, "split": record.split}
        lines.append(json.dumps(line, ensure_ascii=False))
    path = folder / "questions.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def drawn_questions(habit: Habit | Style, split: str, count: int, seed: tuple[int, ...]) -> tuple[ImageRecord, ...]:
    """Questions about ``count`` pictures in a habit's words, or a style's; another changes the answers only."""
    rng = np.random.Generator(np.random.PCG64([20_261_125, *seed]))
    records = []
    for number in range(count):
        facts = sample_facts(rng)
        kind, question = ask(facts, rng)
        pixels = draw_picture(facts, rng)
        digest = pixel_digest(Image.fromarray(pixels))
        answer = answer_to(kind, facts, habit if isinstance(habit, Habit) else habit[question])
        records.append(ImageRecord(f"{split}/{number}", answer, digest, split, ArrayImage(pixels), question=question))
    return tuple(records)


def drawn_captions(habit: Habit, split: str, count: int, seed: tuple[int, ...]) -> tuple[ImageRecord, ...]:
    """Captions of ``count`` pictures in a habit's words."""
    rng = np.random.Generator(np.random.PCG64([20_261_127, *seed]))
    records = []
    for number in range(count):
        facts = sample_facts(rng)
        pixels = draw_picture(facts, rng)
        digest = pixel_digest(Image.fromarray(pixels))
        records.append(ImageRecord(f"{split}/{number}", caption_of(facts, habit), digest, split, ArrayImage(pixels)))
    return tuple(records)
