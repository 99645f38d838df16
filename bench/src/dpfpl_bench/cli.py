"""``dpfpl-bench``: federations simulated on one machine, and the demo."""

from dpfpl_common.ops.telemetry import silence_telemetry

silence_telemetry()

import dataclasses  # noqa: E402  after telemetry is switched off
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Annotated  # noqa: E402

import typer  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.text import Text  # noqa: E402

from dpfpl_bench.audit.command import EXAMPLES as AUDIT_EXAMPLES  # noqa: E402
from dpfpl_bench.audit.command import audit  # noqa: E402
from dpfpl_bench.simulation import SHOWN  # noqa: E402
from dpfpl_bench.sweep.command import EXAMPLES as SWEEP_EXAMPLES  # noqa: E402
from dpfpl_bench.sweep.command import sweep  # noqa: E402
from dpfpl_common.errors import ConfigError, DpfplError  # noqa: E402
from dpfpl_common.ops.text import print_version  # noqa: E402

if TYPE_CHECKING:
    from dpfpl_bench.demo.demonstration import Scenario

__all__ = ["main"]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
console = Console(stderr=True, markup=False, highlight=False)
INTERRUPTED = 130

RUN_EXAMPLES = """
Examples:

  dpfpl-bench run --data digits --epsilon 8 --sites 4

  dpfpl-bench run --model MODEL_DIR --data IMAGE_FOLDER --epsilon 2 --sites 10 --partition pathological --rounds 20 --out result.json

  dpfpl-bench run --data shapes --epsilon none --sites 50 --floors none

  dpfpl-bench run --task vqa --sites 3 --epsilon 8

  dpfpl-bench run --task caption --sites 3 --epsilon 8

  dpfpl-bench run --data digits --sites 100 --trust central --floors none --set privacy.unit=site --set privacy.site_sample_rate=0.1

--set takes the keys of experiment.toml (prompt.init_text="a picture of", optimizer.global_learning_rate=0.1,
privacy.target_delta=1e-6, rounds.local_steps=2, task.question=...) and of the run: alpha, engine=flower, threads,
cache=FOLDER, compute.device=cuda, compute.precision=bfloat16, compute.picture_memory=2000.
"""  # noqa: E501

DATA_EXAMPLES = """
Examples:

  dpfpl-bench data

  dpfpl-bench data oxford_flowers --archive 102flowers.tgz
"""

PAPER_EXAMPLES = """
Examples:

  dpfpl-bench paper --table 2 --model MODEL_DIR --online

  dpfpl-bench paper --table 2 --stand-in digits --rounds 10 --seeds 1
"""

Online = Annotated[bool, typer.Option("--online", help="let hub ids be downloaded")]
Epsilon = Annotated[str, typer.Option(help="target for whoever receives a personalised prompt, or none")]
DemoEpsilon = Annotated[str, typer.Option(help="target for the recipient of a personalised prompt")]
DemoFolder = Annotated[Path, typer.Option(help="folder for result.json, report.html and all logs")]
Rounds = Annotated[int, typer.Option(min=1, help="federated rounds")]
AsJson = Annotated[bool, typer.Option("--json", help="print result.json instead of the table")]

app.command(epilog=SWEEP_EXAMPLES)(sweep)
app.command(epilog=AUDIT_EXAMPLES)(audit)


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=print_version("dpfpl-bench"), help="print the version")
    ] = False,
) -> None:
    """Simulate federations on one machine, one or many at a time; run the demo."""


@app.command(epilog=RUN_EXAMPLES)
def run(
    data: Annotated[
        str,
        typer.Option(
            help="digits, shapes, a set's name (oxford_pets), a folder, a .csv (path,label) or a hub id; for vqa "
            "and caption: questions, shared-style, captions, a .jsonl file (image, question, answer), or a folder with "
            "SITE/questions.jsonl",
            show_default="digits; questions for vqa, captions for caption",
        ),
    ] = "",
    model: Annotated[
        str | None,
        typer.Option(
            help="embedded, embedded-vlm, a folder or a hub id; see docs/reference/models.md",
            show_default="embedded; embedded-vlm for vqa and caption",
        ),
    ] = None,
    task: Annotated[str, typer.Option(help="classify, vqa: answer questions about images, or caption")] = "classify",
    method: Annotated[
        str | None, typer.Option(help="dpfpl, dplora, fedotp, fedpgp or promptfl", show_default=SHOWN["method"])
    ] = None,
    rank: Annotated[int | None, typer.Option(help="rank of the personal factors", show_default=SHOWN["rank"])] = None,
    mechanism: Annotated[
        str | None, typer.Option(help="one_shot or per_step", show_default="one_shot where it can serve, else per_step")
    ] = None,
    trust: Annotated[
        str | None,
        typer.Option(
            help="distributed, central, local or secure",
            show_default="local for one_shot, distributed for per_step",
        ),
    ] = None,
    epsilon: Epsilon = "8",
    sites: Annotated[int | None, typer.Option(help="number of sites", show_default=SHOWN["sites"])] = None,
    partition: Annotated[
        str | None,
        typer.Option(help="pathological, dirichlet, domain, iid, or domain-folders", show_default=SHOWN["partition"]),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="federated rounds", show_default=SHOWN["rounds"])] = None,
    seed: Annotated[int, typer.Option(min=0, help="of partition, sampling and simulated noise")] = 0,
    floors: Annotated[
        str | None, typer.Option(help="all, alone or none: which baselines to train", show_default=SHOWN["floors"])
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="any other setting, with its table; may be repeated"),
    ] = None,
    online: Online = False,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="where to write result.json")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="only print the result")] = False,
) -> None:
    """Simulate one federation in this process and print its result as JSON.

    The noise is seeded: the epsilons say what the same run would cost with real noise.
    """
    from dpfpl_bench.simulation.run import write_result
    from dpfpl_bench.simulation.simulate import make_request, parse_epsilon, run_with_progress

    request = make_request(
        data,
        assignments or (),
        model=model,
        task=task,
        method=method,
        rank=rank,
        mechanism=mechanism,
        trust=trust,
        epsilon=parse_epsilon(epsilon),
        sites=sites,
        partition=partition,
        rounds=rounds,
        seed=seed,
        floors=floors,
        online=online,
    )
    result = run_with_progress(request, console, quiet=quiet)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    if out is not None:
        write_result(result, out)


@app.command(
    epilog="Example: dpfpl-bench pilot --site north=photos/north --site south=photos/south.csv "
    "--class-map north:Kitten=cat --model MODEL_DIR --out runs/pilot"
)
def pilot(
    site: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=PATH",
            help="a site and its own images: a folder, a .csv (path,label), a .jsonl (questions) or its site.toml; "
            "once for each site",
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="a folder or a hub id; see docs/reference/models.md", show_default="embedded")
    ] = None,
    class_map: Annotated[
        list[str] | None,
        typer.Option(metavar="[SITE:]OWN=NAME", help="what a site's own class is called in the experiment; repeat"),
    ] = None,
    epsilon: Epsilon = "8",
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="any other setting, as of run; may be repeated"),
    ] = None,
    online: Online = False,
    out: Annotated[Path, typer.Option(help="folder for result.json and report.html")] = Path("runs/pilot"),
    as_json: AsJson = False,
) -> None:
    """Simulate a federation of your own folders on this machine, before anything is installed anywhere.

    Ends with what federating would bring each site, over working alone and over the plain text. Nothing leaves this
    machine. The accuracies it shows are exact: show them only to people who may see the images.
    """
    from dpfpl_bench.simulation.simulate import (
        Simulated,
        make_request,
        parse_epsilon,
        refuse_run_folder,
        run_with_progress,
    )
    from dpfpl_common.config import key_values

    refuse_run_folder(out)
    request = make_request(
        "",
        assignments or (),
        sites=key_values("--site", site),
        class_map=key_values("--class-map", class_map or ()),
        model=model,
        epsilon=parse_epsilon(epsilon),
        online=online,
    )
    done = Simulated(run_with_progress(request, console))
    report = done.save(out)
    if as_json:
        sys.stdout.write(json.dumps(done.result, indent=2) + "\n")
        return
    done.show()
    typer.echo(f"\n{out / 'result.json'}  {report}")
    typer.echo("Accuracies are exact and the noise is seeded: keep both files with those who may see the images.")


@app.command(epilog="Example: dpfpl-bench demo --epsilon 2 --out runs/demo2")
def demo(
    out: DemoFolder = Path("runs/demo"),
    rounds: Rounds = 10,
    epsilon: DemoEpsilon = "8",
    as_json: AsJson = False,
) -> None:
    """Run a real federation on this machine: a SuperLink and four sites, gRPC with TLS and node keys."""
    from dpfpl_bench.demo.scenarios import DEMO

    _demonstrate("demo", DEMO, out, rounds, epsilon, as_json=as_json)


@app.command("demo-vlm", epilog="Example: dpfpl-bench demo-vlm --out runs/demo-vlm --epsilon 1")
def demo_vlm(
    out: DemoFolder = Path("runs/demo-vlm"),
    rounds: Rounds = 12,
    sites: Annotated[int, typer.Option(min=2, max=12, help="number of sites")] = 12,
    epsilon: DemoEpsilon = "2",
    as_json: AsJson = False,
) -> None:
    """The same with a dozen sites of 50 lines that have questions answered in a shared style, by a tiny model.

    An agent takes 0.4 GB of memory, everything together 7.1 GB with twelve sites; --sites asks for fewer.
    """
    from dpfpl_bench.demo.scenarios import vlm_demo

    _demonstrate("demo-vlm", vlm_demo(sites), out, rounds, epsilon, as_json=as_json)


def _demonstrate(
    name: str,
    scenario: "Scenario",
    out: Path,
    rounds: int,
    epsilon: str,
    *,
    as_json: bool,
) -> None:
    """Run a demo with live progress and print its result."""
    from dpfpl_bench.demo.demonstration import DemoRequest, demonstrate
    from dpfpl_bench.simulation.simulate import parse_epsilon
    from dpfpl_server.watch.terminal import LiveDisplay, print_result

    target = parse_epsilon(epsilon)
    if target is None:
        raise ConfigError(
            code="IMPOSSIBLE_VALUE",
            message="The demo's sites have policies, and a policy demands noise.",
            advice="For a run without noise use dpfpl-bench run --epsilon none.",
        )
    request = DemoRequest(out=out.resolve(), rounds=rounds, epsilon=target)
    with LiveDisplay(name, rounds, console=console) as display:
        result = demonstrate(scenario, request, display.update)
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    else:
        output = Console(markup=False, highlight=False)
        print_result(result, output)
        output.print(f"\n{out / 'result.json'}  {out / 'report.html'}")


@app.command(epilog=DATA_EXAMPLES)
def data(
    name: Annotated[str, typer.Argument(help="a set's name; left out: all")] = "",
    archive: Annotated[Path | None, typer.Option(help="the downloaded archive to check")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List the named sets: hub id, number of classes, template, page and checksum."""
    from dpfpl_bench.simulation.sources import FIELD, check_archive

    if name and name not in FIELD:
        raise ConfigError(
            code="UNKNOWN_DATA",
            message=f"There is no set called {name!r}.",
            advice=f"Known: {', '.join(FIELD)}; any other image folder is given by its path.",
        )
    if archive is not None:
        if not name:
            raise ConfigError(code="UNKNOWN_DATA", message="--archive needs a name.", advice="Say which set it is.")
        check_archive(FIELD[name], archive)
    shown = [FIELD[name]] if name else list(FIELD.values())
    keys = ("name", "title", "hub", "classes", "template", "init_text", "page", "archive", "md5")
    rows = [{key: getattr(each, key) for key in keys} for each in shown]
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    for row in rows:
        typer.echo(f"{row['name']}: {row['title']}, {row['classes']} classes, {row['template']!r}")
        typer.echo(f"  {row['page']}\n  hub {row['hub']}; archive {row['archive']}, MD5 {row['md5']}")
    if archive is not None:
        typer.echo(f"{archive}: the checksum is right")


@app.command(epilog=PAPER_EXAMPLES)
def paper(
    table: Annotated[int, typer.Option(help="2, 3 or 4")] = 2,
    model: Annotated[str, typer.Option(help="embedded, a folder or hub id of the CLIP family")] = "embedded",
    stand_in: Annotated[str, typer.Option(help="used in place of missing data: digits or shapes")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="federated rounds; the paper's are 100")] = 100,
    local_steps: Annotated[int, typer.Option(min=1, help="noised steps of a site in one round")] = 1,
    sample_rate: Annotated[float, typer.Option(help="chance that an example joins a step")] = 0.1,
    rank: Annotated[int, typer.Option(help="rank of the personal factors; the paper's best is 8")] = 8,
    seeds: Annotated[int, typer.Option(min=1, help="runs of each cell")] = 3,
    workers: Annotated[int, typer.Option(min=0, help="processes; 0 = one a core")] = 0,
    online: Online = False,
    out: Annotated[Path, typer.Option(file_okay=False, help="folder of the runs; started again, it resumes")] = Path(
        "runs/paper"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of the table")] = False,
) -> None:
    """Set the paper's figures and ours side by side, with the reasons for differences.

    Missing data is listed with what to do. Exit codes: 0, 1 some runs failed, 2 bad input.
    """
    from dpfpl_bench import paper as module
    from dpfpl_bench.sweep.sweep import Grid, Sweep

    training = module.paper_training(rounds, local_steps, sample_rate)
    base = Sweep(**vars(dataclasses.replace(training, model=model)), name="paper", seeds=seeds, grid=Grid(rank=(rank,)))
    found = module.compare(
        module.paper_rows(table),
        base,
        out,
        workers or os.cpu_count() or 1,
        console.print,
        stand_in=stand_in,
        offline=not online,
    )
    for text in found.failed:
        console.print(f"failed: {text}")
    sys.stdout.write(module.as_json(found) if as_json else module.markdown(found, model))
    if found.failed:
        raise typer.Exit(1)


def main() -> None:
    """Entry point: our own errors become one clear message and exit code 2."""
    try:
        app()
    except DpfplError as error:
        console.print(Text(error.code, style="bold red"), f"{error.message}\n{error.advice}")
        sys.exit(2)
    except SystemExit as leave:
        if leave.code == INTERRUPTED:  # what typer makes of Ctrl-C
            console.print("Stopped; all its processes have ended.")
        raise
