"""``dpfpl-bench``: federations simulated on one machine, and the demo."""

from dpfpl_common.ops.telemetry import silence_telemetry

silence_telemetry()

import json  # noqa: E402  after telemetry is switched off
import sys  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Annotated, Any  # noqa: E402

import typer  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.markup import escape  # noqa: E402

from dpfpl_bench.audit.command import EXAMPLES as AUDIT_EXAMPLES  # noqa: E402
from dpfpl_bench.audit.command import audit  # noqa: E402
from dpfpl_bench.paper_command import EXAMPLES as PAPER_EXAMPLES  # noqa: E402
from dpfpl_bench.paper_command import paper  # noqa: E402
from dpfpl_bench.simulate.data_command import EXAMPLES as DATA_EXAMPLES  # noqa: E402
from dpfpl_bench.simulate.data_command import data  # noqa: E402
from dpfpl_bench.simulate.settings import RunPrompt, RunSettings  # noqa: E402
from dpfpl_bench.simulate.sources import (  # noqa: E402
    FIELD,
    data_settings,
    named_classes,
)
from dpfpl_bench.sweep.command import EXAMPLES as SWEEP_EXAMPLES  # noqa: E402
from dpfpl_bench.sweep.command import sweep  # noqa: E402
from dpfpl_common.config import build, set_keys  # noqa: E402
from dpfpl_common.errors import ConfigError, DpfplError  # noqa: E402
from dpfpl_common.experiment import RoundSettings  # noqa: E402

if TYPE_CHECKING:
    from dpfpl_bench.demo.demonstration import Scenario

__all__ = ["main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console(stderr=True)
INTERRUPTED = 130

EXAMPLES = """
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

app.command(epilog=SWEEP_EXAMPLES)(sweep)
app.command(epilog=AUDIT_EXAMPLES)(audit)
app.command(epilog=DATA_EXAMPLES)(data)
app.command(epilog=PAPER_EXAMPLES)(paper)


@dataclass(frozen=True)
class OpenTask:
    """What a run of a task takes by itself whose answers are words.

    Attributes:
        data: what is drawn for it.
        init_text: what a prompt begins as.
        max_answer_tokens: the longest answer; None: the settings' default.
        model: which model.
    """

    data: str
    init_text: str
    max_answer_tokens: int | None = None
    model: str = "embedded-vlm"


OPEN_TASKS = {
    "vqa": OpenTask("questions", "please answer the question"),
    "caption": OpenTask("captions", "please look and say", 32),
}


@app.callback()
def about() -> None:
    """Simulate federations on one machine, one or many at a time; run the demo."""


@app.command(epilog=EXAMPLES)
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
        str | None, typer.Option(help="dpfpl, dplora, fedotp, fedpgp or promptfl", show_default=RunPrompt.method)
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="rank of the personal factors", show_default=str(RunPrompt.rank))
    ] = None,
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
    epsilon: Annotated[str, typer.Option(help="target for whoever receives a personalised prompt, or none")] = "8",
    sites: Annotated[int | None, typer.Option(help="number of sites", show_default=str(RunSettings.sites))] = None,
    partition: Annotated[
        str | None,
        typer.Option(
            help="pathological, dirichlet, domain, iid, or domain-folders", show_default=RunSettings.partition
        ),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="federated rounds", show_default=str(RoundSettings.number))] = None,
    seed: Annotated[int, typer.Option(min=0, help="of partition, sampling and simulated noise")] = 0,
    floors: Annotated[
        str | None, typer.Option(help="all, alone or none: which floors to train", show_default=RunSettings.floors)
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="any other setting, with its table; may be repeated"),
    ] = None,
    online: Annotated[bool, typer.Option("--online", help="let hub ids be downloaded")] = False,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="where to write result.json")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="only print the result")] = False,
) -> None:
    """Simulate one federation in this process and print its result as JSON.

    The noise is seeded: the epsilons say what the same run would cost with real noise.
    """
    import torch

    from dpfpl_bench.simulate.progress import RunProgress
    from dpfpl_bench.simulate.run import RunRequest, run_simulation, write_result

    target, asked = parse_epsilon(epsilon), OPEN_TASKS.get(task)
    images = "digits" if asked else data or "digits"
    text = asked.init_text if asked else FIELD[images].init_text if images in FIELD else None
    source = data_settings(images, seed, offline=not online)
    given = {
        "data": source,
        "classes": named_classes(images, source) if images in FIELD else None,
        "questions": (data or asked.data) if asked else "",
        "model": model or (asked.model if asked else None),
        "sites": sites,
        "partition": partition,
        "floors": floors,
        "seed": seed,
        "offline": not online,
        "task": {"kind": task} | ({"max_answer_tokens": asked.max_answer_tokens} if asked else {}),
        "prompt": {"method": method, "rank": rank, "init_text": text},
        "privacy": {"mechanism": mechanism, "trust": trust, "target_epsilon": target}
        | ({"noise_multiplier": 0.0} if target is None else {}),
        "rounds": {"number": rounds},
    }
    request = build(RunRequest, set_keys(_without_blanks(given), assignments or ()), "")
    torch.set_num_threads(request.threads)
    with RunProgress(console, request.rounds.number, quiet=quiet) as progress:
        result = run_simulation(request, progress.step, progress.images, progress.status)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    if out is not None:
        write_result(result, out)


def _without_blanks(table: dict[str, Any]) -> dict[str, Any]:
    """The table without flags that were not given, so that the settings' own defaults hold."""
    return {
        key: _without_blanks(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }


@app.command(epilog="Example: dpfpl-bench demo --epsilon 2 --out runs/demo2")
def demo(
    out: Annotated[Path, typer.Option(help="folder for result.json, report.html and all logs")] = Path("runs/demo"),
    rounds: Annotated[int, typer.Option(min=1, help="federated rounds")] = 10,
    epsilon: Annotated[str, typer.Option(help="target for whoever receives a personalised prompt")] = "8",
    as_json: Annotated[bool, typer.Option("--json", help="print result.json instead of the table")] = False,
) -> None:
    """Run a real federation on this machine: a SuperLink and four sites, gRPC with TLS and node keys."""
    from dpfpl_bench.demo.digits import DEMO

    _demonstrate("demo", DEMO, out, rounds, epsilon, as_json=as_json)


@app.command("demo-vlm", epilog="Example: dpfpl-bench demo-vlm --out runs/demo-vlm --epsilon 1")
def demo_vlm(
    out: Annotated[Path, typer.Option(help="folder for result.json, report.html and all logs")] = Path("runs/demo-vlm"),
    rounds: Annotated[int, typer.Option(min=1, help="federated rounds")] = 12,
    sites: Annotated[int, typer.Option(min=2, max=12, help="number of sites")] = 12,
    epsilon: Annotated[str, typer.Option(help="target for whoever receives a personalised prompt")] = "2",
    as_json: Annotated[bool, typer.Option("--json", help="print result.json instead of the table")] = False,
) -> None:
    """The same with a dozen sites of 50 lines that have questions answered in a shared style, by a tiny model.

    An agent takes 0.4 GB of memory, everything together 7.1 GB with twelve sites; --sites asks for fewer.
    """
    from dpfpl_bench.demo.questions import vlm_demo

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
        print_result(result, Console())
        Console().print(f"\n[bold]{out / 'result.json'}[/]  [bold]{out / 'report.html'}[/]")


def parse_epsilon(text: str) -> float | None:
    """A number, or None for ``none``."""
    if text.lower() in ("none", "inf", "infinite"):
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            code="IMPOSSIBLE_VALUE",
            message=f"--epsilon is {text!r}.",
            advice="Give a number, or none for no noise and no privacy claim.",
        ) from None


def main() -> None:
    """Entry point: our own errors become one clear message and exit code 2."""
    try:
        app()
    except DpfplError as error:
        console.print(f"[bold red]{error.code}[/] {escape(error.message)}\n{escape(error.advice)}", highlight=False)
        sys.exit(2)
    except SystemExit as leave:
        if leave.code == INTERRUPTED:  # what typer makes of Ctrl-C
            console.print("Stopped; nothing of it goes on running.")
        raise
