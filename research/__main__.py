"""``python -m research``: the measurements and tables that the documents quote. Run it in the repository's root.

It is no distribution, and nothing of it is installed at a site.
"""

from dpfpl_common.ops.telemetry import silence_telemetry

silence_telemetry()

import json  # noqa: E402  after telemetry is switched off
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated, Literal  # noqa: E402

import typer  # noqa: E402
from rich.console import Console  # noqa: E402

from dpfpl_common.errors import ConfigError, DpfplError  # noqa: E402
from research.tables.benchmarks import EXAMPLES, benchmarks  # noqa: E402

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "support"))  # random models

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console(stderr=True, markup=False, highlight=False)
app.command(epilog=EXAMPLES)(benchmarks)
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.command("attacks", epilog="Example: python -m research attacks --hostile 1/5 --seeds 3 --out runs/attacks")
def attacks(
    out: Annotated[Path, typer.Option(help="folder of the single runs' figures; what it has is not run again")] = Path(
        "runs/attacks"
    ),
    partition: Annotated[str, typer.Option(help="iid, dirichlet or pathological")] = "iid",
    epsilon: Annotated[str, typer.Option(help="target under local trust, or none")] = "8",
    rounds: Annotated[int, typer.Option(min=1, help="federated rounds of each run")] = 8,
    learning_rate: Annotated[float, typer.Option(min=1e-6, help="of the shared prompt")] = 0.2,
    seeds: Annotated[int, typer.Option(min=1, help="runs of each cell, averaged")] = 3,
    hostile: Annotated[str, typer.Option(help="how many of how many sites are hostile")] = "1/5,2/10",
    as_json: AsJson = False,
) -> None:
    """Measure what hostile sites do to honest ones under each aggregation rule; prints a table in Markdown."""
    import torch

    from dpfpl_bench.simulation.simulate import parse_epsilon
    from research.hostile_sites.attacks import AttackSettings
    from research.hostile_sites.table import AttackRequest, largest_spread, markdown, run_attacks

    torch.set_num_threads(1)
    settings = AttackSettings(parse_epsilon(epsilon), partition, rounds, learning_rate)
    request = AttackRequest(_federations(hostile), settings, seeds)
    cells = run_attacks(request, out, lambda text: console.print(text))
    sys.stdout.write(json.dumps(cells, indent=2) + "\n" if as_json else markdown(cells))
    for figure in ("personal", "shared"):
        spread = 100 * largest_spread(cells, figure)
        console.print(f"largest standard deviation over seeds, {figure} prompt: {spread:.1f} points")


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
    as_json: AsJson = False,
) -> None:
    """Make, load, train, export and time a small random model of every known family; prints a table in Markdown."""
    from dpfpl_client.site.settings import ComputeSettings
    from random_models.families import FAMILIES, Sizes
    from random_models.generative import GENERATIVE
    from research.tables.models import Trial, measure_all, table, with_table

    unknown = sorted(set(family or ()) - set(FAMILIES))
    if unknown:
        raise ConfigError(
            code="IMPOSSIBLE_VALUE",
            message=f"--family is {unknown[0]!r}, expected one of {', '.join(FAMILIES)}.",
            advice="Correct the flag.",
        )
    for flag, whole, part in (("heads", width, heads), ("patch", image, patch)):
        if whole % part:
            raise ConfigError(
                code="IMPOSSIBLE_VALUE",
                message=f"--{flag} is {part}, which does not divide {whole}.",
                advice="Correct the flag.",
            )
    ComputeSettings(device, precision)  # refuses what has no meaning before the first model is made
    trial = Trial(Sizes(width, layers, heads, image, patch), batch, device, precision, threads)
    known = list(FAMILIES) if precision == "float32" else list(GENERATIVE)
    measured = measure_all(family or known, trial, lambda text: console.print(text))
    sys.stdout.write(json.dumps(measured, indent=2) + "\n" if as_json else table(measured) + "\n")
    if page is not None:
        page.write_text(with_table(page.read_text(encoding="utf-8"), measured), encoding="utf-8")


@app.command("questions", epilog="Example: python -m research questions --out runs/questions --docs docs/results")
def questions(
    out: Annotated[Path, typer.Option(help="folder of the runs; started again it goes on")] = Path("runs/questions"),
    docs: Annotated[Path, typer.Option(help="folder for questions.md and its picture")] = Path("docs/results"),
    seeds: Annotated[int, typer.Option(min=1, help="runs of each cell")] = 3,
    page_only: Annotated[bool, typer.Option("--page-only", help="run nothing, write what is there")] = False,
) -> None:
    """Measure what federating is worth for questions in a shared style; about half an hour of one core."""
    import torch

    from research.tables.questions import finished_cells, run_cells, write_page

    torch.set_num_threads(1)
    cells = finished_cells(seeds, out) if page_only else run_cells(seeds, out, lambda text: console.print(text))
    typer.echo(str(write_page(cells, docs)))


def _federations(text: str) -> tuple[tuple[int, int], ...]:
    """From "1/5,2/10" to ((5, 1), (10, 2))."""
    found = []
    for part in text.split(","):
        hostile, _, sites = part.strip().partition("/")
        if not (hostile.isdigit() and sites.isdigit() and int(hostile) > 0 and 2 * int(hostile) + 2 < int(sites)):
            raise ConfigError(
                code="IMPOSSIBLE_VALUE",
                message=f"--hostile is {part.strip()!r}.",
                advice="Give hostile/all with more than twice as many and two sites in all, as Krum needs: 1/5,2/10.",
            )
        found.append((int(sites), int(hostile)))
    return tuple(found)


@app.command("round", epilog="Example: python -m research round --out runs/round --json")
def round_cost(
    out: Annotated[Path, typer.Option(help="folder for keys, logs and results; emptied first")] = Path("runs/round"),
    rounds: Annotated[int, typer.Option(min=2, help="rounds of the demo's experiment")] = 10,
    as_json: AsJson = False,
) -> None:
    """Measure a deployed round of the demo against an empty Flower round over the same processes."""
    from research.speed.round_cost import AIM, measure_deployed_round

    figures = measure_deployed_round(out.resolve(), rounds, lambda text: console.print(text))
    if as_json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
        return
    typer.echo(
        f"a round {figures['round_s']:.2f} s; an empty one {figures['empty_round_s']:.2f} s; slowest site "
        f"{figures['slowest_site_s']:.1f} s; allowed {AIM:g} empty + slowest = {figures['allowed_s']:.2f} s; ratio "
        f"{figures['ratio']:.2f}"
    )


@app.command("scale", epilog="Example: python -m research scale --sites 10,100,1000 --rounds 2")
def scale(
    sites: Annotated[str, typer.Option(help="numbers of sites")] = "10,100,1000",
    rounds: Annotated[int, typer.Option(min=1, help="federated rounds of each")] = 3,
    images: Annotated[int, typer.Option(min=1, help="training images of a site")] = 60,
    as_json: AsJson = False,
) -> None:
    """Measure a round with a real agent for every site, all in this process; prints a table in Markdown."""
    import torch

    from research.speed.scale import ScaleRequest, markdown, measure_scale

    parts = [part.strip() for part in sites.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(
            code="IMPOSSIBLE_VALUE", message=f"--sites is {sites!r}.", advice="Give numbers of sites: 10,100,1000."
        )
    torch.set_num_threads(1)
    request = ScaleRequest(tuple(int(part) for part in parts), rounds, images)
    rows = measure_scale(request, lambda text: console.print(text))
    sys.stdout.write(json.dumps(rows, indent=2) + "\n" if as_json else markdown(rows))


@app.command("speed", epilog="Example: python -m research speed --quick --json")
def speed(
    out: Annotated[Path, typer.Option(help="folder for bench.json")] = Path("runs/bench"),
    quick: Annotated[bool, typer.Option("--quick", help="a few minutes less, without the slowest contestants")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure steps, memory, feature cache and rounds against the usual ways to compute the same; writes bench.json."""
    from research.speed.suite import run_suite

    result = run_suite(out, quick=quick, say=lambda text: console.print(text))
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        return
    for row in result["targets"]:
        typer.echo(f"{'met   ' if row['met'] else 'MISSED'}  {row['measured']:10.3g} {row['target']:>8}  {row['name']}")
    typer.echo(f"{out / 'bench.json'} after {result['seconds']:.0f} s")


@app.command("speed-page", epilog="Example: python -m research speed-page --docs docs/results")
def speed_page(
    bench: Annotated[Path, typer.Option(help="what make bench wrote")] = Path("runs/bench/bench.json"),
    docs: Annotated[Path, typer.Option(help="folder for performance.md and its pictures")] = Path("docs/results"),
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
        console.print(f"{error.code} {error.message}\n{error.advice}")
        sys.exit(2)


if __name__ == "__main__":
    main()
