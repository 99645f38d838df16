"""What ``--data`` means where questions are to be answered: drawn sites, one file dealt out, or one for each site."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dpfpl_bench.demo.drawn_questions import drawn_houses, drawn_sites, with_neighbours
from dpfpl_bench.simulation.in_process import site_names
from dpfpl_client.data import DataSettings, ImageRecord, SiteData, load_site_data
from dpfpl_common.errors import ConfigError

__all__ = ["question_sites"]

Draw = Callable[[int, int], list[SiteData]]
DRAWN: Mapping[str, Draw] = {
    "questions": lambda count, seed: drawn_sites(count, 300, 150, seed),
    "captions": lambda count, seed: drawn_sites(count, 300, 150, seed, captions=True),
    "shared-style": lambda count, seed: drawn_houses(count, 50, 40, seed),
}
"""What is drawn by which name, given the number of sites and the seed: 300 lines a site, 50 where much is shared."""


def question_sites(data: str, count: int, seed: int) -> tuple[list[str], list[SiteData]]:
    """Names of the sites and their questions.

    Args:
        data: ``questions``, ``captions`` or ``shared-style``, drawn sites for the embedded model; a .jsonl file, whose
            pictures are dealt out evenly; or a folder whose sub-folders hold a ``questions.jsonl`` each, one site a
            folder.
        count: of the sites; a folder says itself how many.
        seed: of drawing, dealing and splits.

    Raises:
        ConfigError: NO_DATA or IMPOSSIBLE_VALUE.
        DataError: what is wrong with a file.
    """
    path = Path(data).expanduser()
    if data in DRAWN:
        return site_names(count), DRAWN[data](count, seed)
    if path.is_dir():
        files = sorted(path.glob("*/questions.jsonl"))
        if files:
            sites = [_site(file, seed) for file in files]
            return [file.parent.name for file in files], with_neighbours(sites)
    elif path.suffix.lower() == ".jsonl":
        return site_names(count), _dealt(_site(path, seed), count, seed)
    raise ConfigError(
        code="NO_DATA",
        message=f"{data!r} is no .jsonl file and no folder with SITE/questions.jsonl in it.",
        advice='Give a file of lines {"image": ..., "question": ..., "answer": ...}, such a folder, "questions", '
        '"captions" or "shared-style".',
    )


def _site(file: Path, seed: int) -> SiteData:
    return load_site_data(DataSettings(source="questions", path=str(file), split_seed=seed), ())


def _dealt(whole: SiteData, count: int, seed: int) -> list[SiteData]:
    """The questions dealt out evenly; all that are about one picture go to one site."""
    pictures = sorted({record.digest for record in (*whole.train, *whole.test)})
    order = np.random.Generator(np.random.PCG64([20_261_126, seed])).permutation(len(pictures))
    owner = {pictures[int(place)]: turn % count for turn, place in enumerate(order)}

    def part(records: Sequence[ImageRecord], site: int) -> tuple[ImageRecord, ...]:
        return tuple(record for record in records if owner[record.digest] == site)

    sites = [
        SiteData(part(whole.train, site), part(whole.test, site), (), (), whole.problems if site == 0 else ())
        for site in range(count)
    ]
    if not all(site.train for site in sites):
        raise ConfigError(
            code="IMPOSSIBLE_VALUE",
            message=f"{count} sites cannot share the training questions about {len(pictures)} pictures.",
            advice="Use fewer sites or more pictures.",
        )
    return with_neighbours(sites)
