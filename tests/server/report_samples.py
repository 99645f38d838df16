"""Results as a run would leave them, for the tests of the report, the console and the browser."""

import html
import re
import string
import tomllib
from importlib import resources

import server_samples

from dpfpl_server.report.texts import OWN_WORDS
from dpfpl_server.runs.result import build_result, verdict

SITES = ("east", "north", "south", "west")


def make_experiment(rounds=3, **privacy):
    settings = {"classes": ("a cat", "a dog"), "rounds": {"number": rounds}, "noise_multiplier": 2.0}
    return server_samples.make_experiment(SITES, **settings | privacy)


def metrics(site, completed):
    base = 0.5027 + 0.011 * SITES.index(site)
    return {
        "personal_local": base + 0.07 * completed,
        "personal_neighbour": base - 0.05 + 0.013 * completed,
        "global_local": base + 0.031 * completed,
        "global_neighbour": base - 0.05 + 0.02 * completed,
        "zero_shot_local": base,
        "zero_shot_neighbour": base - 0.05,
    }


def entry(number, released, dropped):
    told = {site: metrics(site, number - 1) for site in released if site not in dropped}
    amounts = {"seconds": 1.25 + number, "bytes_up": 4000 + number, "bytes_down": 17000 + number}
    return server_samples.entry(number, SITES, dropped, metrics=told, **amounts)


def make_result(rounds=3, completed=None, released=SITES, dropped=None, privacy=None, **changes):
    completed = rounds if completed is None else completed
    history = [entry(k, released, (dropped or {}).get(k, {})) for k in range(1, completed + 1)]
    arguments = {
        "transport": "grpc+tls",
        "history": history,
        "final": {site: metrics(site, completed) for site in released},
        "num_classes": dict.fromkeys(SITES, 2),
        "seconds": 34.5,
    }
    return build_result(make_experiment(rounds, **(privacy or {})), **(arguments | changes))


def everything():
    """A result in which every section has something to say."""
    result = make_result(
        rounds=5,
        dropped={2: {"west": "NO_REPLY"}},
        extra_floors={"local_only": {"local": 0.8, "neighbour": 0.3}, "centralised": {"local": 0.7, "neighbour": 0.7}},
    )
    return result | {
        "audit": [
            {
                "attack": "canary",
                "adversary": "operator",
                "epsilon_lower_bound": 0.31,
                "epsilon_claimed": 2.0,
                "confidence": 0.95,
            }
        ]
    }


def with_counts(result, images=200):
    """The result where it is known how many test images each site has."""
    for site in result["sites"]:
        site["test_images"] = images
    return result | {"verdict": verdict(result)}


def plain(fragment):
    return html.unescape(re.sub(r"<[^>]*>", "", fragment)).replace("\u00a0", " ")  # a figure never breaks


def answer(page):
    return plain(re.search(r'<section class="answer">(.*?)</section>', page, re.DOTALL).group(1))


def catalogue(language, task=None):
    """The report's words by key: those of a task whose answers are words, or all others."""
    text = resources.files("dpfpl_server.report").joinpath(f"texts_{language}.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    tables = tables[task] if task else {name: table for name, table in tables.items() if name not in OWN_WORDS}
    return {f"{section}.{key}": words for section, table in tables.items() for key, words in table.items()}


def fields(text):
    """What is put into a text."""
    return sorted(field for _, field, _, _ in string.Formatter().parse(text) if field is not None)


BY_HAND = {
    "cases_per_month": 1000,
    "minutes_per_case": 6,
    "minutes_per_case_assisted": 4.5,
    "hourly_cost": 40,
    "cost_of_an_error": 200,
    "share_of_errors_that_cost": 0.1,
    "new_margin_per_month": 50,
    "one_off_cost": 9000,
    "running_cost_per_month": 250,
    "months": 24,
}
"""Inputs of roi.toml; tests/server/test_roi.py computes with them by hand."""
