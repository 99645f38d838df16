"""``dpfpl-client``: what the administrator of a site types."""

from dpfpl_common.ops.telemetry import silence_telemetry

silence_telemetry()  # before Flower or a model library is imported, which read their switches then

import json  # noqa: E402
import sys  # noqa: E402
import traceback  # noqa: E402
from dataclasses import asdict  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Annotated, Any, NoReturn  # noqa: E402

import typer  # noqa: E402
from rich.console import Console  # noqa: E402

from dpfpl_client.agent.progress import ImageProgress  # noqa: E402
from dpfpl_client.cli.gate import add_gate_commands, ask_about_looser_rules  # noqa: E402
from dpfpl_client.cli.keys import add_key_commands  # noqa: E402
from dpfpl_client.cli.operations import add_commands  # noqa: E402
from dpfpl_client.cli.say import say  # noqa: E402
from dpfpl_common.errors import ConfigError, DpfplError  # noqa: E402
from dpfpl_common.ops.files import file_error  # noqa: E402
from dpfpl_common.ops.text import print_version, printable_lines  # noqa: E402

if TYPE_CHECKING:
    from dpfpl_client.site.settings import SiteSettings
    from dpfpl_client.use.prompt import Classifier, SitePrompt

__all__ = ["main"]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
ledger_app = typer.Typer(no_args_is_help=True, help="What this site's data have paid so far.")
app.add_typer(ledger_app, name="ledger")
add_gate_commands(app)
add_key_commands(app)
add_commands(app)
console = Console(stderr=True, markup=False, highlight=False)
INTERRUPTED = 130

SiteFile = Annotated[Path, typer.Option("--site", help="the site's site.toml")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
OfExperiment = Annotated[
    str | None, typer.Option("--experiment", help="whose prompt; default: that of the experiment finished last")
]
Unfinished = Annotated[bool, typer.Option("--unfinished", help="also accept a prompt whose experiment has not ended")]
Also = Annotated[
    list[str] | None, typer.Option("--also", help="a class to add to the list, known by its name alone; repeatable")
]
SITE = Path("site.toml")


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=print_version("dpfpl-client"), help="print the version")
    ] = False,
) -> None:
    """Take part in a DP-FPL federation with this site's own images, which never leave it."""


@app.command(
    epilog="Example: dpfpl-client init --kit hospital-a.tar.gz --data /data/xrays --model /models/clip-b16 "
    "--class-map Viral_Pneumonia='viral pneumonia'"
)
def init(
    data: Annotated[
        str | None, typer.Option(help="image folder, .csv (path,label), .jsonl (questions), digits or shapes")
    ] = None,
    site: SiteFile = SITE,
    name: Annotated[str, typer.Option(help="the site's name, for a site without a kit")] = "site",
    kit: Annotated[
        Path | None, typer.Option(help="the operator's archive; unpacked first, or its keys renewed")
    ] = None,
    into: Annotated[Path | None, typer.Option(help="folder for the kit; default: the site's name")] = None,
    sha256: Annotated[str | None, typer.Option(help="the archive's checksum, as the operator gave it to you")] = None,
    model: Annotated[str | None, typer.Option(help="a folder or a hub id, as the operator names it")] = None,
    class_map: Annotated[
        list[str] | None,
        typer.Option(
            "--class-map", metavar="OWN=NAME", help="a class of yours and what the experiment calls it; repeat"
        ),
    ] = None,
    usual_mix: Annotated[
        float | None, typer.Option(help="share of images that predict and serve expect from your usual mix of classes")
    ] = None,
) -> None:
    """Unpack a kit and write into site.toml what you give; makes site.toml and policy.toml where there is no kit."""
    from dpfpl_client.site.init import initialise, model_note
    from dpfpl_client.site.kit import unpack_kit
    from dpfpl_common.config import key_values

    if kit is not None:
        folder, written = unpack_kit(kit, into, sha256)
        site = folder / "site.toml"
        say(f"unpacked {', '.join(path.name for path in written)} into {folder}")
    if data is not None or class_map or model is not None or usual_mix is not None:
        mapped = key_values("--class-map", class_map or ())
        for path in initialise(site, data, name, model=model, class_map=mapped, usual_mix=usual_mix):
            say(f"wrote {path}")
    elif kit is None:
        raise ConfigError(code="NO_DATA", message="There is nothing to do.", advice="Give --data, --kit or both.")
    if data is not None and (note := model_note(site)):
        say(note)
    ask_about_looser_rules(site)
    say(f"Next: read policy.toml, then dpfpl-client check --site {site}")


@app.command(
    epilog="Example: dpfpl-client check --site kits/hospital-a/site.toml. "
    "Exit codes: 0 ready, 1 ready with warnings, 2 cannot take part."
)
def check(
    site: SiteFile = SITE,
    offline: Annotated[bool, typer.Option("--offline", help="do not try to reach the server")] = False,
    plan: Annotated[Path | None, typer.Option(help="an operator's plan, to be judged for this site")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="treat every warning as an error")] = False,
    as_json: AsJson = False,
) -> None:
    """Check images, model, policy, ledger, folders, kit, connection and clock; keeps and sends nothing."""
    from dpfpl_client.check import check_site

    report = check_site(_load(site), connect=not offline, plan=plan)
    if strict:
        report.make_strict()
    if as_json:
        _print_json({"facts": report.facts, "warnings": report.warnings, "errors": report.errors})
    else:
        for key, value in report.facts.items():
            say(f"{key}: {_plain(value)}")
        for text in report.warnings:
            say(f"WARNING {text}")
        for text in report.errors:
            say(f"ERROR {text}")
        say("Cannot take part yet." if report.errors else "Ready.")
    sys.exit(2 if report.errors else 1 if report.warnings else 0)


@app.command(epilog="Example: dpfpl-client start --site kits/hospital-a/site.toml")
def start(site: SiteFile = SITE) -> None:
    """Start this site's agent and its connection to the server; Ctrl-C stops both."""
    from dpfpl_client.node.launch import run_site

    run_site(site.resolve(), _load(site), say)


@app.command(
    epilog="Example: sudo dpfpl-client separate --site kits/hospital-a/site.toml --agent-user dpfpl-agent "
    "--node-user dpfpl-node"
)
def separate(
    agent_user: Annotated[str, typer.Option("--agent-user", help="reads images, policy, ledger and prompt")],
    node_user: Annotated[str, typer.Option("--node-user", help="keeps the connection and runs the operator's code")],
    site: SiteFile = SITE,
) -> None:
    """Have agent and SuperNode run as two users: gives each its files and names both in site.toml; run by root."""
    from dpfpl_client.site import separation
    from dpfpl_client.site.init import name_users

    site = site.resolve()
    name_users(site, agent_user, node_user)
    for line in separation.separate(site, _load(site)):
        say(line)
    say(f"The images are yours to protect: only {agent_user} may read them. Then, as root: dpfpl-client start")


@app.command(epilog="Example: dpfpl-client agent --site kits/hospital-a/site.toml")
def agent(
    site: SiteFile = SITE,
    address: Annotated[str, typer.Option(help="listen here, not where site.toml says: unix:/path or host:port")] = "",
) -> None:
    """Start only the agent, for deployments that run the connection elsewhere."""
    import dataclasses

    import torch

    from dpfpl_client.agent.build import build_agent
    from dpfpl_client.agent.metrics import MeteredAgent, start_monitor
    from dpfpl_client.agent.service import serve
    from dpfpl_client.site.separation import identities
    from dpfpl_common.ops.telemetry import configure_logging

    configure_logging()
    settings = _load(site)
    if address:
        settings = dataclasses.replace(settings, agent=dataclasses.replace(settings.agent, address=address))
    torch.set_num_threads(settings.agent.threads)
    built = build_agent(settings, ImageProgress(say))
    for problem in built.data.problems:
        console.print(f"{problem.severity}: {problem.message} [{problem.code}]")
    if built.loosened:
        console.print(
            f"warning: policy.toml is looser than what was accepted in {', '.join(built.loosened)}; the stricter old "
            f"rules hold. To accept it: dpfpl-client policy accept --site {site}",
        )

    def ready(address: str) -> None:
        settings.ready_file.touch()
        say(f"The agent of {settings.name} listens on {address}")

    metered = MeteredAgent(built.endpoint)
    monitor = start_monitor(settings, metered)
    if monitor is not None:
        say(f"Health and metrics: http://{monitor.address}/health and /metrics")
    serve(
        metered,
        settings.agent_address,
        settings.token_file,
        group=identities(settings)[1].gid if settings.separated else None,
        on_ready=ready,
    )


@app.command(
    epilog="Example: dpfpl-client predict photo.png scans/ --site site.toml --csv found.csv. "
    "Exit codes: 0 all read, 1 some images could not be read, 2 none could, or an error."
)
def predict(
    images: Annotated[list[Path], typer.Argument(help="image files or folders")],
    site: SiteFile = SITE,
    experiment: OfExperiment = None,
    unfinished: Unfinished = False,
    top: Annotated[int, typer.Option("--top-k", "--top", min=1, help="how many classes to show")] = 3,
    question: Annotated[
        str, typer.Option(help="asked of every image, by a prompt that answers questions or captions")
    ] = "",
    alpha: Annotated[
        float | None, typer.Option(help="weight of the personal part: 0 shared prompt alone, 1 as trained")
    ] = None,
    usual_mix: Annotated[
        float | None, typer.Option(help="share of images expected from this site's usual mix of classes, 0 to below 1")
    ] = None,
    also: Also = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="write a CSV file, one row an image")] = None,
    served: Annotated[
        str,
        typer.Option(help="address of a running `serve`, which answers instead: needs no model and no site.toml"),
    ] = "",
    token_file: Annotated[Path | None, typer.Option(help="file with the token that the --served one asks for")] = None,
    as_json: AsJson = False,
) -> None:
    """Classify images with this site's personalised prompt; an image that cannot be read does not stop the others."""
    from dpfpl_client.use.predict import as_json as entry
    from dpfpl_client.use.predict import as_line, classify_files, count_skipped, expand_images, write_csv
    from dpfpl_client.use.serving.remote import classify_served
    from dpfpl_common.ops.http import read_http_token

    paths, results = expand_images(images), []
    if token_file and not served:
        raise ConfigError(
            code="NOT_SERVED", message="--token-file is for a running serve.", advice="Give its address: --served."
        )
    if served:
        if experiment or unfinished or alpha is not None or usual_mix is not None or also:
            raise ConfigError(
                code="ANOTHER_PROMPT",
                message="With --served the prompt is the one that is served.",
                advice="Leave --experiment, --unfinished, --alpha, --usual-mix and --also out, or leave --served out.",
            )
        token = read_http_token("", token_file) if token_file else None
        found = classify_served(served, paths, top, question, token)
    else:
        settings = _load(site)
        prompt = _prompt(settings, experiment, unfinished, alpha, usual_mix).with_names(*(also or ()))
        found = classify_files(_classifier(settings, prompt, question), paths, top, settings.data.pixel_rules)
    for result in found:
        results.append(result)
        if result.prediction is None:
            console.print(printable_lines(as_line(result)), soft_wrap=True)
        elif not as_json and csv is None:
            say(as_line(result))
    if csv is not None:
        write_csv(csv, results)
    if as_json:
        _print_json([entry(result) for result in results])
    failed = sum(result.prediction is None for result in results)
    if skipped := count_skipped(images):
        console.print(f"{skipped} other file{'s' if skipped > 1 else ''} skipped: no image by name, or hidden")
    if csv is not None and not as_json:
        say(f"wrote {csv}: {len(results) - failed} of {len(results)} images classified")
    sys.exit(0 if not failed else 1 if failed < len(results) else 2)


@app.command(epilog="Example: dpfpl-client prompts --site site.toml")
def prompts(site: SiteFile = SITE, as_json: AsJson = False) -> None:
    """List the prompts that this site has learned, newest first, and which one predict, serve and export use."""
    from dpfpl_client.use.prompt import list_prompts

    found = list_prompts(_load(site).state_folder)
    if as_json:
        _print_json(found)
        return
    for row in found:
        rounds = f"round {row['round']} of {row['rounds']}" if "round" in row else ""
        what = row.get("damaged") or f"version {row['version']}, learned {row['learned']}, {rounds}"
        state = ", the default" if row["default"] else "" if row["finished"] else ", half-finished"
        say(f"{row['experiment']}: {what}{state}")
    if not found:
        say("This site has not learned a prompt yet.")


@app.command(epilog="Example: dpfpl-client results --site site.toml")
def results(
    site: SiteFile = SITE,
    experiment: Annotated[str | None, typer.Option(help="whose prompts; default: the latest")] = None,
    as_json: AsJson = False,
) -> None:
    """Show accuracy on this site's held-back images: exact, for you alone, and as released with noise."""
    from dpfpl_client.use.results import exact_results, results_lines

    found = exact_results(_load(site), experiment)
    if as_json:
        _print_json(found)
        return
    for line in results_lines(found):
        typer.echo(line)


@app.command(epilog="Example: dpfpl-client serve --site site.toml --port 8080")
def serve(
    site: SiteFile = SITE,
    experiment: OfExperiment = None,
    unfinished: Unfinished = False,
    host: Annotated[
        str, typer.Option(help="address to listen on; another than loopback needs --token-file")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0 takes a free one")] = 8080,
    token_file: Annotated[Path | None, typer.Option(help="file with the token that callers must show")] = None,
    usual_mix: Annotated[
        float | None, typer.Option(help="share of images expected from this site's usual mix of classes, 0 to below 1")
    ] = None,
    max_megabytes: Annotated[int, typer.Option(min=1, max=1000, help="largest image file, in MB")] = 20,
) -> None:
    """Classify images over HTTP: a small API (see /openapi.json) and a page to drop an image on; Ctrl-C stops it."""
    import torch

    from dpfpl_client.use.results import released_scores
    from dpfpl_client.use.serving.app import classifier_app, serve_app
    from dpfpl_common.ops.http import read_http_token

    token = read_http_token(host, token_file)
    settings = _load(site)
    torch.set_num_threads(settings.agent.threads)
    prompt = _prompt(settings, experiment, unfinished, usual_mix=usual_mix)
    classifier = _classifier(settings, prompt, question=None)
    mix = prompt.experiment.prompt.usual_mix if prompt.choice is not None else None
    names = {key: prompt.about()[key] for key in ("experiment", "version", "learned", "finished")}
    about = {"site": settings.name, "model": Path(settings.model).name, "usual_mix": mix} | names
    scores, largest = released_scores(settings, prompt), max_megabytes * 1_000_000
    serve_app(classifier_app(classifier, largest, settings.data.pixel_rules, scores, about), host, port, token, say)


@app.command(epilog="Example: dpfpl-client export --out prompt --site site.toml")
def export(
    out: Annotated[Path, typer.Option(help="folder to write")],
    site: SiteFile = SITE,
    experiment: OfExperiment = None,
    unfinished: Unfinished = False,
    also: Also = None,
    licence: Annotated[
        str, typer.Option("--license", help="the prompt's licence, as model hubs write it: apache-2.0")
    ] = "unknown",
    repository: Annotated[
        str | None,
        typer.Option("--push-to-hub", help="also upload it there, ORGANISATION/NAME; policy.toml must name it"),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="let everybody read that repository; an existing private one stays private")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write this site's prompt for plain transformers and peft, with a model card; refused where policy forbids it."""
    from dpfpl_client.models.loader import load_computing
    from dpfpl_client.use.exporting.export import check_publish, export_prompt, push_to_hub

    if public and repository is None:
        raise ConfigError(
            code="NO_REPOSITORY",
            message="--public applies to an upload, and nothing is uploaded.",
            advice="Give --push-to-hub ORGANISATION/NAME as well, or leave --public out.",
        )
    settings = _load(site)
    prompt = _prompt(settings, experiment, unfinished).with_names(*(also or ()))
    if repository is not None:
        check_publish(settings, prompt, repository)
    backbone = load_computing(settings.model, settings.compute, offline=settings.offline)
    exported = export_prompt(settings, prompt, backbone, out, licence)
    uploaded = None if repository is None else push_to_hub(settings, prompt, exported, repository, public=public)
    if as_json:
        facts = {"folder": str(out), "files": exported.files, "no_adapter": exported.no_adapter or None}
        _print_json(facts | (asdict(uploaded) if uploaded else {}))
        return
    say(f"wrote {out}: {', '.join(exported.files)}")
    if exported.no_adapter:
        merged = "text_features.safetensors" in exported.files
        instead = "the merged text features" if merged else "the prompt without one"
        say(f"No PEFT adapter: {exported.no_adapter}. README.md shows how to use {instead}.")
    if uploaded:
        say(f"uploaded, for {'everybody' if uploaded.public else 'those with access at the hub'}: {uploaded.commit}")
    if uploaded and public and not uploaded.public:
        say(f"{repository} was private already and stays so; the hub's own page changes that.")
    say("Read README.md there before you pass it on: it says what the prompt may tell about a training image.")


@ledger_app.command("show", epilog="Example: dpfpl-client ledger show --site kits/hospital-a/site.toml")
def ledger_show(site: SiteFile = SITE, as_json: AsJson = False) -> None:
    """Show what was released and what it cost."""
    from dpfpl_client.agent.ledger.view import summarise

    summary = summarise(_load(site))
    if as_json:
        _print_json(summary)
        return
    for row in summary["experiments"]:
        say(
            f"{row['experiment']}: {row['charges']} charges for {row['rounds']} rounds"
            f"{' and the scores' if row['scored'] else ''}, {row['released']} released, "
            f"epsilon {_number(row['epsilon'])}, towards the operator {_number(row['epsilons']['operator'])}"
        )
        if row["counts_whole"]:
            say("  It was admitted because nothing was charged before it. Later experiments count all that it planned.")
    say(
        f"In all: epsilon {_number(summary['spent_epsilon'])} of {summary['max_epsilon_lifetime']:g}, "
        f"left {summary['left_epsilon']:.2f}, at delta {summary['delta']:g}"
    )
    say(
        f"Towards the operator: epsilon {_number(summary['spent_epsilons']['operator'])} of "
        f"{summary['max_epsilon_operator_lifetime']:g}, left {summary['left_epsilon_operator']:.2f}"
    )


@ledger_app.command("verify", epilog="Example: dpfpl-client ledger verify --site kits/hospital-a/site.toml")
def ledger_verify(site: SiteFile = SITE, as_json: AsJson = False) -> None:
    """Check the ledger against itself and the stored releases; exit code 2 if something is wrong."""
    from dpfpl_client.agent.ledger.view import verify

    problems = verify(_load(site))
    if as_json:
        _print_json({"problems": problems})
    else:
        say("\n".join(problems) if problems else "The ledger is in order.")
    sys.exit(2 if problems else 0)


@ledger_app.command(
    "accept-rollback", epilog="Example: dpfpl-client ledger accept-rollback --site kits/hospital-a/site.toml"
)
def ledger_accept_rollback(
    site: SiteFile = SITE,
    nothing_lost: Annotated[
        bool,
        typer.Option(
            "--nothing-was-lost",
            help="you state that the ledger is the newest one; only accepted where nothing outside the state folder "
            "remembers it, for instance after a move to another machine",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    as_json: AsJson = False,
) -> None:
    """Continue with an old copy of the ledger: all that may have been spent since is charged."""
    from dpfpl_client.agent.ledger.view import accept_rollback

    settings = _load(site)
    if not yes:
        typer.confirm("Budget that may have been spent since this copy was made counts as spent. Continue?", abort=True)
    result = accept_rollback(settings, nothing_lost=nothing_lost)
    if as_json:
        _print_json(result)
        return
    for row in result["charged"]:
        say(f"charged: {row['experiment'] or 'all that is left'}, up to round {row['last_round']}")
    say("The ledger is accepted." if result["charged"] else "The ledger is accepted; nothing was missing.")


def _load(site: Path) -> "SiteSettings":
    from dpfpl_client.site.settings import load_site  # a quarter of a second, which --help does not wait for

    return load_site(site)


def _prompt(
    settings: "SiteSettings",
    experiment: str | None,
    unfinished: bool,
    alpha: float | None = None,
    usual_mix: float | None = None,
) -> "SitePrompt":
    """The prompt that is used, and said to be."""
    from dpfpl_client.use.prompt import load_prompt

    prompt = load_prompt(settings.state_folder, experiment, unfinished=unfinished)
    console.print(f"Prompt: {prompt}", soft_wrap=True)
    if alpha is not None:
        prompt = prompt.with_strength(alpha)
    if usual_mix is None and prompt.choice is not None:
        usual_mix = settings.usual_mix
    return prompt if usual_mix is None else prompt.with_usual_mix(usual_mix)


def _classifier(settings: "SiteSettings", prompt: "SitePrompt", question: str | None) -> "Classifier":
    from dpfpl_client.agent.policy_file import check_use
    from dpfpl_client.models.loader import load_computing

    check_use(settings.path(settings.policy), settings.state_folder, prompt.experiment)
    return prompt.classifier(load_computing(settings.model, settings.compute, offline=settings.offline), question)


def _number(value: float | str) -> str:
    return f"{value:.2f}" if isinstance(value, float) else value


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def _fail(error: DpfplError) -> NoReturn:
    text = printable_lines(f"{error.code}: {error.message}\n{error.advice}")
    console.print(text, style="bold", soft_wrap=True)
    sys.exit(2)


def _unforeseen() -> NoReturn:
    traceback.print_exc()
    sys.exit(2)


def main() -> None:
    """Entry point: our own errors become one clear message and exit code 2.

    So does what nobody foresaw, behind its traceback: Python's own exit code 1 would say "ready, with warnings".
    """
    try:
        app()
    except DpfplError as error:
        _fail(error)
    except OSError as error:
        known = file_error(error)
        if known is None:
            _unforeseen()
        _fail(known)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers", "PIL", "safetensors", "sklearn"):
            _unforeseen()
        advice = 'Install the agent: pip install "dpfpl-client[agent]"'
        console.print(f"{error.name} is missing. {advice}", style="bold", soft_wrap=True)
        sys.exit(2)
    except SystemExit as leave:
        if leave.code == INTERRUPTED:  # what typer makes of Ctrl-C
            console.print("Stopped.")
        raise
    except Exception:  # noqa: BLE001  shown whole, and only the exit code is ours
        _unforeseen()
