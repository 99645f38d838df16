"""``python -m research``: the measurements and tables that the documents quote. Run it in the repository's root.

It is no distribution, and nothing of it is installed at a site.
"""

from dpfpl_common.ops.telemetry import silence_telemetry

silence_telemetry()

import os  # noqa: E402  after telemetry is switched off
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated, Literal  # noqa: E402

import typer  # noqa: E402
from rich.console import Console  # noqa: E402

from dpfpl_common.errors import ConfigError, DpfplError  # noqa: E402

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "support"))  # random models

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console(stderr=True, markup=False, highlight=False)
Docs = Annotated[Path, typer.Option(file_okay=False, help="folder of the page and its pictures")]


def _say(text: str) -> None:
    console.print(text)


def _wrong(flag: str, value: object, advice: str) -> ConfigError:
    return ConfigError(code="IMPOSSIBLE_VALUE", message=f"{flag} is {value!r}.", advice=advice)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@app.command("benchmarks", epilog="Example: python -m research benchmarks --out runs/benchmarks --docs docs/results")
def benchmarks(
    out: Annotated[Path, typer.Option(file_okay=False, help="folder of the runs; started again it goes on")] = Path(
        "runs/benchmarks"
    ),
    docs: Docs = Path("docs/results"),
    demo: Annotated[
        Path, typer.Option(file_okay=False, help="a demo whose released prompts are attacked, if it is there")
    ] = Path("runs/demo"),
    workers: Annotated[int, typer.Option(min=0, help="processes; 0 = one a core")] = 0,
    page_only: Annotated[bool, typer.Option("--page-only", help="run nothing, write what is there")] = False,
) -> None:
    """Run the benchmarks on built-in data and write docs/results/benchmarks.md; half an hour on two free cores."""
    from research.tables.benchmarks import run_benchmarks

    run_benchmarks(out, docs, demo, workers or os.cpu_count() or 1, _say, run=not page_only)


@app.command("attacks", epilog="Example: python -m research attacks --seeds 3 --out runs/attacks")
def attacks(
    out: Annotated[Path, typer.Option(help="folder of the single runs' figures; what it has is not run again")] = Path(
        "runs/attacks"
    ),
    rounds: Annotated[int, typer.Option(min=1, help="federated rounds of each run")] = 8,
    learning_rate: Annotated[float, typer.Option(min=1e-6, help="of the shared prompt")] = 0.2,
    seeds: Annotated[int, typer.Option(min=1, help="runs of each cell, averaged")] = 3,
) -> None:
    """Measure what hostile sites do to honest ones under each aggregation rule; prints a table in Markdown."""
    from research.hostile_sites import AttackSettings, attack_tables, run_attacks

    _one_thread()
    cells = run_attacks(AttackSettings(rounds, learning_rate, seeds), out, _say)
    typer.echo(attack_tables(cells))
    for figure in ("personal", "shared"):
        largest = 100 * max(float(cell[f"{figure}_spread"]) for cell in cells)
        _say(f"largest standard deviation over seeds, {figure} prompt: {largest:.1f} points")


@app.command("models", epilog="Example: python -m research models --page docs/results/models.md")
def models(
    family: Annotated[list[str] | None, typer.Option(help="only these; repeat the flag")] = None,
    page: Annotated[Path | None, typer.Option(help="file whose table is replaced")] = None,
    width: Annotated[int, typer.Option(min=16, help="of hidden states")] = 256,
    layers: Annotated[int, typer.Option(min=2, help="of each tower")] = 6,
    heads: Annotated[int, typer.Option(min=2, help="of attention; they divide the width")] = 8,
    image: Annotated[int, typer.Option(min=16, help="edge of a picture in pixels")] = 112,
    patch: Annotated[int, typer.Option(min=2, help="edge of a patch in pixels; it divides the picture's")] = 14,
    batch: Annotated[int, typer.Option(min=1, help="examples of a step")] = 16,
    device: Annotated[str, typer.Option(help="where to compute: cpu, cuda, cuda:1")] = "cpu",
    precision: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="float32, or bfloat16, which only generative models compute in"),
    ] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="threads of the matrix library")] = 1,
) -> None:
    """Make, load, train, export and time a small random model of every known family; prints a table in Markdown."""
    from random_models.families import FAMILIES, Sizes
    from random_models.generative import GENERATIVE
    from research.tables.models import Trial, measure_all, table, with_table

    unknown = sorted(set(family or ()) - set(FAMILIES))
    if unknown:
        raise _wrong("--family", unknown[0], f"Give one of {', '.join(FAMILIES)}.")
    trial = Trial(Sizes(width, layers, heads, image, patch), batch, device, precision, threads)
    known = list(FAMILIES) if precision == "float32" else list(GENERATIVE)
    measured = measure_all(family or known, trial, _say)
    typer.echo(table(measured))
    if page is not None:
        page.write_text(with_table(page.read_text(encoding="utf-8"), measured), encoding="utf-8")


@app.command("questions", epilog="Example: python -m research questions --out runs/questions --docs docs/results")
def questions(
    out: Annotated[Path, typer.Option(help="folder of the runs; started again it goes on")] = Path("runs/questions"),
    docs: Docs = Path("docs/results"),
) -> None:
    """Measure what federating is worth for questions in a shared style; about half an hour of one core."""
    from research.tables.questions import run_cells, write_page

    _one_thread()
    typer.echo(str(write_page(run_cells(out, _say), docs)))


@app.command("round", epilog="Example: python -m research round --out runs/round")
def round_cost(
    out: Annotated[Path, typer.Option(help="folder for keys, logs and results; emptied first")] = Path("runs/round"),
    rounds: Annotated[int, typer.Option(min=2, help="rounds of the demo's experiment")] = 10,
) -> None:
    """Measure a deployed round of the demo against an empty Flower round over the same processes."""
    from research.speed.deployed import AIM, measure_deployed_round

    figures = measure_deployed_round(out.resolve(), rounds, _say)
    typer.echo(
        f"a round {figures['round_s']:.2f} s; an empty one {figures['empty_round_s']:.2f} s; slowest site "
        f"{figures['slowest_site_s']:.1f} s; allowed {AIM:g} empty + slowest = {figures['allowed_s']:.2f} s; ratio "
        f"{figures['ratio']:.2f}"
    )


@app.command("scale", epilog="Example: python -m research scale --sites 10,100,1000 --rounds 2")
def scale(
    sites: Annotated[str, typer.Option(help="numbers of sites")] = "10,100,1000",
    rounds: Annotated[int, typer.Option(min=1, help="federated rounds of each")] = 3,
) -> None:
    """Measure a round with a real agent for every site, all in this process; prints a table in Markdown."""
    from research.speed.scale import measure_scale, scale_table

    parts = [part.strip() for part in sites.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise _wrong("--sites", sites, "Give numbers of sites: 10,100,1000.")
    _one_thread()
    typer.echo(scale_table(measure_scale([int(part) for part in parts], rounds, _say)))


@app.command("speed", epilog="Example: python -m research speed --out runs/bench")
def speed(
    out: Annotated[Path, typer.Option(help="folder for bench.json")] = Path("runs/bench"),
) -> None:
    """Measure steps, memory, feature cache and rounds against the usual ways to compute the same; writes bench.json."""
    from research.speed.suite import run_suite

    result = run_suite(out, _say)
    for row in result["targets"]:
        typer.echo(f"{'met   ' if row['met'] else 'MISSED'}  {row['measured']:10.3g} {row['target']:>8}  {row['name']}")
    typer.echo(f"{out / 'bench.json'} after {result['seconds']:.0f} s")


@app.command("speed-page", epilog="Example: python -m research speed-page --docs docs/results")
def speed_page(
    bench: Annotated[Path, typer.Option(help="what make bench wrote")] = Path("runs/bench/bench.json"),
    docs: Docs = Path("docs/results"),
) -> None:
    """Write docs/results/performance.md from bench.json."""
    from research.speed.page import write_performance

    if not bench.is_file():
        raise ConfigError(code="NO_BENCH", message=f"There is no {bench}.", advice="Run make bench first.")
    typer.echo(str(write_performance(bench, docs)))


def main() -> None:
    """Entry point: our own errors become one clear message and exit code 2."""
    try:
        app()
    except DpfplError as error:
        _say(f"{error.code} {error.message}\n{error.advice}")
        sys.exit(2)


if __name__ == "__main__":
    main()
