"""The guides tell the truth: their commands and options exist, what can be run is run, their numbers come out."""

import math
import re
import shlex
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from dpfpl_bench.cli import app as bench_app
from dpfpl_client.agent.store import DiskStore, Record
from dpfpl_client.cli import main as client
from dpfpl_client.learning.learner import PersonalState
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings
from dpfpl_common.optimizer import OptimizerState
from dpfpl_common.privacy.accounting import calibrate_noise_multiplier
from dpfpl_common.wire.payloads import SiteReply
from dpfpl_server.cli import main as server

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = {"dpfpl-server": server.app, "dpfpl-client": client.app, "dpfpl-bench": bench_app}
DOCUMENTS = ("README.md", "README.ja.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")))


def blocks(document, *languages):
    """Fenced blocks without a language or with one of these."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [
        body for kind, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if kind in languages
    ]


def commands(document):
    """Our own commands in a document, each as a list of words; a backslash joins lines."""
    found = []
    for body in blocks(document, "", "sh", "bash", "console"):
        for line in body.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
            if line.split(" ")[0] in PROGRAMS:
                found.append(shlex.split(line, comments=True))
    return found


DRAWINGS = {"docs/explanation/architecture.md"}  # its blocks are no commands to type
ALL = [(d, words) for d in DOCUMENTS if d not in DRAWINGS for words in commands(d)]


def test_there_are_commands_to_check():
    assert len(ALL) > 25
    assert {words[0] for _, words in ALL} == set(PROGRAMS)
    assert {document for document, _ in ALL} >= {
        "README.md",
        "README.ja.md",
        "docs/howto/site.md",
        "docs/howto/operator.md",
    }


@pytest.mark.parametrize(
    ("document", "words"), ALL, ids=lambda value: value if isinstance(value, str) else " ".join(value)[:60]
)
def test_every_command_of_the_guides_is_one(document, words):
    """Parsed by the program itself, without being carried out: an unknown command or option fails here."""
    command = get_command(PROGRAMS[words[0]])
    context = command.make_context(words[0], list(words[1:]), resilient_parsing=False)
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None, f"{document}: {' '.join(words)}"
        try:
            context = command.make_context(name, rest, parent=context)
        except SystemExit as end:  # a path that must exist, for instance
            pytest.fail(f"{document}: {' '.join(words)}: {end}")


def test_make_targets_of_the_guides_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in (*DOCUMENTS, "CONTRIBUTING.md"):
        for body in blocks(document, "", "sh", "bash"):
            for named in re.findall(r"^(?:\$ )?make ([a-z-]+)", body, re.MULTILINE):
                assert named in targets, f"{document}: make {named}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_toml_in_the_guides_is_toml(document):
    for body in blocks(document, "toml"):
        tomllib.loads(body)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_in_the_guides_is_python(document):
    for body in blocks(document, "python"):
        compile(body, document, "exec")


def test_anchors_between_documents_exist():
    def anchor(title):
        return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")

    for document in DOCUMENTS:
        path = ROOT / document
        for target, place in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", path.read_text(encoding="utf-8")):
            aim = (path.parent / target).resolve() if target else path
            titles = re.findall(r"^#+ (.*)$", aim.read_text(encoding="utf-8"), re.MULTILINE)
            assert place in {anchor(title) for title in titles}, f"{document} links to {target}#{place}"


# The five minutes of the guides, typed in their order


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """What a command of ours prints, typed in an empty folder; by its own entry point, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(line, allowed=(0,)):
        words = shlex.split(line)
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            {"dpfpl-server": server, "dpfpl-client": client}[words[0]].main()
        printed = capsys.readouterr()
        assert (ended.value.code or 0) in allowed, f"{line}\n{printed.out}\n{printed.err}"
        return printed.out

    return run


@pytest.mark.slow
def test_what_the_guides_say_before_a_network_is_there(tmp_path, typed):
    """provision, init, check and ledger as a new operator and a new site type them, in an empty folder."""
    (tmp_path / "images").mkdir()
    typed("dpfpl-server provision --site hospital-a --site hospital-b --out kits --address 127.0.0.1")
    typed("dpfpl-client init --data digits --site kits/hospital-a/site.toml")
    assert "fingerprint" in typed("dpfpl-client check --offline --site kits/hospital-a/site.toml", allowed=(0, 1))
    assert "roi.toml" in typed("dpfpl-server roi-template --out roi.toml")
    typed("dpfpl-client ledger show --site kits/hospital-a/site.toml", allowed=(2,))


def test_the_python_of_the_site_guide_runs(tmp_path, monkeypatch, capsys):
    (body,) = [b for b in blocks("docs/howto/site.md", "python") if "load_prompt" in b]
    trained_folder = a_site_with_a_prompt(tmp_path)
    Image.new("RGB", (20, 20), "white").save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(body.replace('"kits/hospital-a"', repr(str(trained_folder))), "docs/howto/site.md", "exec"), {})
    assert "bright" in capsys.readouterr().out


def a_site_with_a_prompt(folder):
    """A site's folder with one round of a prompt, without any training."""
    model = load_backbone("embedded")
    experiment = Experiment(
        name="pilot",
        classes=("bright", "dark"),
        sites=("north", "south"),
        model=ModelSettings(width=model.width, fingerprint=model.fingerprint),
        privacy=PrivacySettings(mechanism="per_step", noise_multiplier=2.0),
    )
    (folder / "site.toml").write_text('name = "north"\n[data]\nsource = "digits"\n')
    zeros = np.zeros(experiment.context_shape)
    state = PersonalState(zeros, OptimizerState(zeros, zeros, 0))
    store = DiskStore(folder / "state")
    store.remember(experiment)
    reply = SiteReply("north", 1, zeros.astype("<f4"), {})
    store.write("pilot", 1, Record("digest", reply, zeros.astype("<f4"), state))
    store.write_final("pilot", zeros.astype("<f4"))
    return folder


# Numbers


def table(document, head):
    text = (ROOT / document).read_text(encoding="utf-8")
    block = text[text.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[float(cell.replace(",", "")) for cell in row.strip("| ").split("|")] for row in block]


def test_the_tables_of_images_and_epsilons_are_computed():
    for epsilon, noise, *images in table("docs/explanation/choosing.md", "| epsilon | noise, `per_step`"):
        z = calibrate_noise_multiplier(epsilon, 1e-5, 0.5, 40)
        assert noise == pytest.approx(z, abs=0.006)
        assert images == [10 * math.ceil(z * math.sqrt(4 * width) / 0.5 / 10) for width in (128, 512, 768)]
    for epsilon, noise, *images in table("docs/explanation/choosing.md", "| epsilon | noise, `one_shot`"):
        z = calibrate_noise_multiplier(epsilon, 1e-5, 1.0, 1)
        assert noise == pytest.approx(z, abs=0.006)
        assert images == [math.ceil(z * math.sqrt(size)) for size in (96, 512, 768)]


def means(cell):
    """Of ``96.0 ± 1.1 / 53.6 ± 4.5``, or without spreads: both numbers."""
    return [part.split()[0] for part in cell.split(" / ")]


def test_measured_numbers_are_those_of_the_privacy_page():
    measured = (ROOT / "docs/results/accuracy.md").read_text()
    text = " ".join((ROOT / "docs/explanation/choosing.md").read_text().split())
    steps, once, plain = (
        [means(cell) for cell in re.findall(rf"^\| {way} \|(.*)$", measured, re.MULTILINE)[0].split("|")[1:7]]
        for way in (
            r"dpfpl \| per_step \| distributed",
            r"dpfpl \| one_shot \| local",
            r"promptfl \| one_shot \| local",
        )
    )
    (own, others), (ours, theirs) = once[1], plain[1]  # no noise comes first, epsilon 8 second
    assert f"`dpfpl` {own} % on a site's own classes and {others} % on the others'" in text
    assert f"`promptfl` {ours} and {theirs} (" in text
    said = "{} % at epsilon 8, {} at 4, {} at 2, {} at 1 and {} at 0.5, where "
    for (free, _), *noised, end in (
        (*steps, "every image counted without noise gave {} ("),
        (*once, "no noise gave {}."),
    ):
        assert (said + end).format(*(local for local, _ in noised), free) in text
