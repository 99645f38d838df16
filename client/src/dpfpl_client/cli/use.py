"""What is done with a learned prompt: predict, list prompts and results, serve, export."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpfpl_client.cli.options import SITE, AsJson, SiteFile, console, load, print_json, say
from dpfpl_common.errors import ConfigError
from dpfpl_common.ops.text import printable_lines

if TYPE_CHECKING:
    from dpfpl_client.site.settings import SiteSettings
    from dpfpl_client.use.prompt import Classifier, SitePrompt

__all__ = ["app"]

app = typer.Typer()

OfExperiment = Annotated[
    str | None, typer.Option("--experiment", help="whose prompt; default: that of the experiment finished last")
]
Unfinished = Annotated[bool, typer.Option("--unfinished", help="also accept a prompt whose experiment has not ended")]
UsualMix = Annotated[
    float | None, typer.Option(help="share of images expected from this site's usual mix of classes, 0 to below 1")
]
Also = Annotated[
    list[str] | None, typer.Option("--also", help="a class to add to the list, known by its name alone; repeatable")
]


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
    usual_mix: UsualMix = None,
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
        settings = load(site)
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
        print_json([entry(result) for result in results])
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

    found = list_prompts(load(site).state_folder)
    if as_json:
        print_json(found)
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

    found = exact_results(load(site), experiment)
    if as_json:
        print_json(found)
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
    usual_mix: UsualMix = None,
    max_megabytes: Annotated[int, typer.Option(min=1, max=1000, help="largest image file, in MB")] = 20,
) -> None:
    """Classify images over HTTP: a small API (see /openapi.json) and a page to drop an image on; Ctrl-C stops it."""
    import torch

    from dpfpl_client.use.results import released_scores
    from dpfpl_client.use.serving.app import classifier_app, serve_app
    from dpfpl_common.ops.http import read_http_token

    token = read_http_token(host, token_file)
    settings = load(site)
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
    settings = load(site)
    prompt = _prompt(settings, experiment, unfinished).with_names(*(also or ()))
    if repository is not None:
        check_publish(settings, prompt, repository)
    backbone = load_computing(settings.model, settings.compute, offline=settings.offline)
    exported = export_prompt(settings, prompt, backbone, out, licence)
    uploaded = None if repository is None else push_to_hub(settings, prompt, exported, repository, public=public)
    if as_json:
        facts = {"folder": str(out), "files": exported.files, "no_adapter": exported.no_adapter or None}
        print_json(facts | (asdict(uploaded) if uploaded else {}))
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
