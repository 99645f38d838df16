"""``dpfpl-bench``: federations simulated on one machine, and the demo."""

from dpfpl_common.ops.telemetry import silence_telemetry

silence_telemetry()

import json  # noqa: E402  after telemetry is switched off
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Annotated  # noqa: E402

import typer  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.markup import escape  # noqa: E402

from dpfpl_bench.audit.command import EXAMPLES as AUDIT_EXAMPLES  # noqa: E402
from dpfpl_bench.audit.command import audit  # noqa: E402
from dpfpl_bench.paper_command import EXAMPLES as PAPER_EXAMPLES  # noqa: E402
from dpfpl_bench.paper_command import paper  # noqa: E402
from dpfpl_bench.simulate.data_command import EXAMPLES as DATA_EXAMPLES  # noqa: E402
from dpfpl_bench.simulate.data_command import data  # noqa: E402
from dpfpl_bench.simulate.sources import (  # noqa: E402
    FIELD,
    data_settings,
    initial_text,
    named_classes,
)
from dpfpl_bench.sweep.command import EXAMPLES as SWEEP_EXAMPLES  # noqa: E402
from dpfpl_bench.sweep.command import sweep  # noqa: E402
from dpfpl_common.errors import ConfigError, DpfplError  # noqa: E402

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

  dpfpl-bench run --data digits --unit site --site-sample-rate 0.1 --trust central --sites 100 --floors none
"""  # noqa: E501

app.command(epilog=SWEEP_EXAMPLES)(sweep)
app.command(epilog=AUDIT_EXAMPLES)(audit)
app.command(epilog=DATA_EXAMPLES)(data)
app.command(epilog=PAPER_EXAMPLES)(paper)

OPEN_TASKS = {
    "vqa": ("questions", "please answer the question"),
    "caption": ("captions", "please look and say"),
}
"""Tasks whose answers are words: what is drawn for them, and what a prompt begins as."""


@app.callback()
def about() -> None:
    """Simulate federations on one machine, one or many at a time; run the demo."""


@app.command(epilog=EXAMPLES)
def run(
    data: Annotated[
        str,
        typer.Option(
            help="digits, shapes, a set's name (oxford_pets), a folder, a .csv (path,label) or a hub id; for vqa "
            "and caption: questions, captions, a .jsonl file (image, question, answer), or a folder with "
            "SITE/questions.jsonl",
            show_default="digits; questions for vqa, captions for caption",
        ),
    ] = "",
    model: Annotated[
        str,
        typer.Option(
            help="embedded, embedded-vlm, a folder or a hub id; see docs/models.md",
            show_default="embedded; embedded-vlm for vqa and caption",
        ),
    ] = "",
    task: Annotated[str, typer.Option(help="classify, vqa: answer questions about images, or caption")] = "classify",
    question: Annotated[str, typer.Option(help="what classify or caption asks a generative model of every image")] = "",
    max_answer_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="longer answers are cut off", show_default="8; 32 for caption"),
    ] = None,
    method: Annotated[str, typer.Option(help="dpfpl, dplora, fedotp, fedpgp or promptfl")] = "dpfpl",
    rank: Annotated[int, typer.Option(help="rank of the personal factors")] = 4,
    unit: Annotated[
        str, typer.Option(help="what is protected: example, or site for a site's whole data set")
    ] = "example",
    site_sample_rate: Annotated[float, typer.Option(help="chance that a site joins a round; needs --unit site")] = 1.0,
    mechanism: Annotated[
        str, typer.Option(help="one_shot or per_step", show_default="one_shot where it can serve, else per_step")
    ] = "",
    trust: Annotated[
        str,
        typer.Option(help="distributed, central or local", show_default="local for one_shot, distributed for per_step"),
    ] = "",
    projection: Annotated[str, typer.Option(help="of one_shot's class sums: none, or text")] = "none",
    absent_weight: Annotated[
        float, typer.Option(help="of one_shot: least share of the loss that keeps the classes a site lacks")
    ] = 0.0,
    retention: Annotated[
        float, typer.Option(help="of per_step: pull of the personal part towards keeping all classes apart")
    ] = 0.0,
    contrast: Annotated[float, typer.Option(help="of fedpgp: weight of its contrastive term")] = 0.0,
    personal_strength: Annotated[
        float, typer.Option(help="weight of the personal part in use: 0 shared prompt alone, 1 as trained")
    ] = 1.0,
    clipping: Annotated[str, typer.Option(help="joint or separate")] = "joint",
    accounting: Annotated[str, typer.Option(help="honest, or paper for reproductions")] = "honest",
    epsilon: Annotated[str, typer.Option(help="target for whoever receives a personalised prompt, or none")] = "8",
    delta: Annotated[float, typer.Option(help="delta of every epsilon")] = 1e-5,
    sites: Annotated[int, typer.Option(min=1, help="number of sites")] = 4,
    partition: Annotated[
        str, typer.Option(help="pathological, dirichlet, domain, iid, or domain-folders")
    ] = "pathological",
    alpha: Annotated[float, typer.Option(help="concentration of the dirichlet partition")] = 0.3,
    rounds: Annotated[int, typer.Option(min=1, help="federated rounds")] = 10,
    local_steps: Annotated[int, typer.Option(min=1, help="noised steps of a site in one round")] = 4,
    sample_rate: Annotated[float, typer.Option(help="chance that an example joins a step")] = 0.5,
    clipping_norm: Annotated[
        float, typer.Option(help="L2 bound of one example's gradient, or of a site's update")
    ] = 0.1,
    learning_rate: Annotated[float, typer.Option(help="of the global context")] = 0.02,
    personal_learning_rate: Annotated[float, typer.Option(help="of the personal context")] = 0.02,
    init_text: Annotated[
        str | None,
        typer.Option(
            help="text that the context starts from; left out: the data set's own",
            show_default="the data set's own; please answer the question for vqa, please look and say for caption",
        ),
    ] = None,
    num_context: Annotated[int, typer.Option(help="context vectors; 0 = as many as the text has tokens")] = 0,
    evaluate_every: Annotated[int, typer.Option(min=1, help="evaluate every so many rounds")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="of partition, sampling and simulated noise")] = 0,
    engine: Annotated[str, typer.Option(help="inprocess, or flower for Flower's own simulation runtime")] = "inprocess",
    floors: Annotated[
        str, typer.Option(help="all, alone (each site alone only), or none: which floors to train")
    ] = "all",
    cache: Annotated[
        Path | None, typer.Option(file_okay=False, help="folder that keeps image features between runs")
    ] = None,
    online: Annotated[bool, typer.Option("--online", help="let hub ids be downloaded")] = False,
    threads: Annotated[int, typer.Option(min=1, help="threads of the matrix library")] = 1,
    device: Annotated[str, typer.Option(help="where the model computes: cpu, cuda, cuda:1")] = "cpu",
    precision: Annotated[
        str, typer.Option(help="float32, or bfloat16: half the memory of a generative model")
    ] = "float32",
    picture_memory: Annotated[
        int, typer.Option(min=0, help="MB that a generative model holds of pictures between steps; 0: 256")
    ] = 0,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="where to write result.json")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="only print the result")] = False,
) -> None:
    """Simulate one federation in this process and print its result as JSON.

    The noise is seeded: the epsilons say what the same run would cost with real noise.
    """
    import torch

    from dpfpl_bench.simulate.progress import RunProgress
    from dpfpl_bench.simulate.run import RunRequest, run_simulation, write_result
    from dpfpl_bench.simulate.settings import BenchSettings
    from dpfpl_client.site.settings import ComputeSettings
    from dpfpl_common.experiment import TaskSettings

    torch.set_num_threads(threads)
    open_answers = task in OPEN_TASKS
    questions = (data or OPEN_TASKS[task][0]) if open_answers else ""
    data = "digits" if open_answers else data or "digits"
    settings = data_settings(data, seed, offline=not online)
    if init_text is None:
        init_text = OPEN_TASKS[task][1] if open_answers else initial_text(data)
    request = RunRequest(
        model=model or ("embedded-vlm" if open_answers else "embedded"),
        data=settings,
        questions=questions,
        classes=named_classes(data, settings) if data in FIELD else None,
        partition=partition,
        num_sites=sites,
        alpha=alpha,
        seed=seed,
        bench=BenchSettings(
            name="bench",
            method=method,
            rank=rank,
            mechanism=mechanism,
            trust=trust,
            epsilon=parse_epsilon(epsilon),
            clipping=clipping,
            accounting=accounting,
            delta=delta,
            rounds=rounds,
            local_steps=local_steps,
            sample_rate=sample_rate,
            clipping_norm=clipping_norm,
            learning_rate=learning_rate,
            personal_learning_rate=personal_learning_rate,
            init_text=init_text,
            num_context=num_context,
            evaluate_every=evaluate_every,
            unit=unit,
            site_sample_rate=site_sample_rate,
            projection=projection,
            absent_weight=absent_weight,
            retention=retention,
            contrast=contrast,
            personal_strength=personal_strength,
            task=TaskSettings(task, question, max_answer_tokens or (32 if task == "caption" else 8)),
        ),
        floors=floors,
        engine=engine,
        cache=cache,
        offline=not online,
        compute=ComputeSettings(device, precision, picture_memory),
    )
    with RunProgress(console, rounds, quiet=quiet) as progress:
        result = run_simulation(request, progress.step, progress.images, progress.status)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    if out is not None:
        write_result(result, out)


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


@app.command("demo-vlm", epilog="Example: dpfpl-bench demo-vlm --out runs/demo-vlm --rounds 6")
def demo_vlm(
    out: Annotated[Path, typer.Option(help="folder for result.json, report.html and all logs")] = Path("runs/demo-vlm"),
    rounds: Annotated[int, typer.Option(min=1, help="federated rounds")] = 6,
    epsilon: Annotated[str, typer.Option(help="target for whoever receives a personalised prompt")] = "8",
    as_json: Annotated[bool, typer.Option("--json", help="print result.json instead of the table")] = False,
) -> None:
    """The same with three sites that have questions about pictures answered, by a tiny generative model."""
    from dpfpl_bench.demo.questions import DEMO_VLM

    _demonstrate("demo-vlm", DEMO_VLM, out, rounds, epsilon, as_json=as_json)


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
