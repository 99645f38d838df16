"""What people wait for when they type a command: CPU seconds of whole programs, beside the least that could be done."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from dpfpl_client.agent.build import build_agent
from dpfpl_client.models.loader import load_backbone
from dpfpl_client.site.settings import load_site
from dpfpl_client.use.exporting.card import Facts
from dpfpl_client.use.exporting.export import write_export
from dpfpl_client.use.prompt import SitePrompt
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, PromptSettings, RoundSettings
from dpfpl_common.ops.processes import ProcessGroup, free_port, wait_until
from dpfpl_common.wire.payloads import EvaluateRequest, TrainRequest
from research.speed.features import write_photographs, write_vit_b16
from research.speed.timing import cpu_seconds

__all__ = ["measure_starting"]

TURNS = 3
CLASSES = ("cat", "dog")
HELP = ("dpfpl-client", "dpfpl-server", "dpfpl-bench")
MERGES = 48_894
"""Of CLIP's published vocabulary, which is not ours to pass on: as many entries are made up here."""

POLICY = 'experiments = ["*"]\nmax_epsilon_per_experiment = 50.0\nmax_epsilon_lifetime = 100.0\nmetrics = "none"\n'

LEAST = """
import sys, torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel
folder, picture = sys.argv[1:]
model = CLIPModel.from_pretrained(folder).eval()
texts = AutoTokenizer.from_pretrained(folder)(["a cat.", "a dog."], padding=True, return_tensors="pt")
pixels = CLIPImageProcessorPil.from_pretrained(folder)(images=[Image.open(picture).convert("RGB")], return_tensors="pt")
with torch.no_grad():
    print(model(**texts, **pixels).logits_per_image.softmax(-1))
"""
"""Loading the model with transformers and one forward."""
PARTS = """
import resource, sys
seconds, last, outer = {}, 0.0, ["everything else"]
def took(part):
    global last
    used = resource.getrusage(resource.RUSAGE_SELF)
    now = used.ru_utime + used.ru_stime
    seconds[part] = round(seconds.get(part, 0.0) + now - last, 3)
    last = now
def timed(module, name, part):
    function = getattr(module, name)
    def call(*arguments, **options):
        took(outer[-1])
        outer.append(part)
        try:
            return function(*arguments, **options)
        finally:
            took(outer.pop())
    setattr(module, name, call)
took("everything else")
import torch
took("importing torch")
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
took("importing transformers")
import dpfpl_client.agent.policy_file, dpfpl_client.cli.main, dpfpl_client.models.encoders
import dpfpl_client.models.image_tower, dpfpl_client.use.predict
took("everything else")
timed(dpfpl_client.agent.policy_file, "check_use", "does the policy allow it")
timed(dpfpl_client.models.encoders, "load_parts", "weights, tokenizer, preprocessing")
timed(dpfpl_client.models.encoders, "model_fingerprint", "the model's fingerprint")
timed(dpfpl_client.models.encoders, "text_tower_of", "laying out the text tower, and trying it")
timed(dpfpl_client.models.encoders, "refuse_differences", "trying the model against plain transformers")
timed(dpfpl_client.models.image_tower, "_swap_products", "laying out the image tower, and trying it")
sys.argv[:] = ["dpfpl-client", "predict", sys.argv[1], "--site", sys.argv[2]]
try:
    dpfpl_client.cli.main.main()
except SystemExit as end:
    assert not end.code
took("everything else")
import json
print(json.dumps(seconds), file=sys.stderr)
"""
"""A prediction that tells where its CPU seconds went, by the pieces of the program that are worth a name."""


def measure_starting(say: Callable[[str], None]) -> dict[str, Any]:
    """CPU seconds of ``--help``, ``ledger show``, one prediction over the least, and an export's, medians in turns.

    ``predict_parts``: of one more prediction, where they went.
    """
    say("start of programs")
    programs: dict[str, Sequence[str]] = {f"{name} --help": (_program(name), "--help") for name in HELP}
    with tempfile.TemporaryDirectory(prefix="dpfpl-") as name:
        folder = Path(name)
        model = write_vit_b16(folder / "model", text_layers=12)
        site = _site(folder, model)
        picture = str(write_photographs(folder / "photographs", 1)[0])
        programs |= {
            "ledger show": (_program("dpfpl-client"), "ledger", "show", "--site", str(site)),
            "predict": (_program("dpfpl-client"), "predict", picture, "--site", str(site)),
            "least": (sys.executable, "-c", LEAST, str(model), picture),
        }
        with _serving(site, folder / "serve.log") as address:
            asked = (_program("dpfpl-client"), "predict", picture, "--served", address)
            served = [_child_seconds(asked) for _ in range(TURNS)]
        times: dict[str, list[float]] = {key: [] for key in programs}
        for _ in range(TURNS):
            for key, command in programs.items():
                times[key].append(_child_seconds(command))
        times["predict --served"] = served
        told = _run((sys.executable, "-c", PARTS, picture, str(site))).stderr
        say("export with a large vocabulary")
        export = [_export_seconds(folder / str(turn)) for turn in range(TURNS)]
    ratios = [one / other for one, other in zip(times["predict"], times["least"], strict=True)]
    seconds = {key: median(found) for key, found in times.items()}
    return {
        "cpu_seconds": seconds,
        "predict_over_least": median(ratios),
        "predict_parts": json.loads(told.splitlines()[-1]),
        "export_cpu_seconds": median(export),
    }


@contextmanager
def _serving(site: Path, log: Path) -> Iterator[str]:
    """A ``serve`` that runs meanwhile; gives its address."""
    with ProcessGroup() as group:
        port = free_port()
        command = [_program("dpfpl-client"), "serve", "--site", str(site), "--port", str(port)]
        process = group.start("serve", command, log_file=log)
        wait_until(lambda: "Open http" in process.log_text(), timeout_s=120, what="serve", processes=(process,))
        yield f"http://127.0.0.1:{port}"


def _site(folder: Path, model: Path) -> Path:
    """The site.toml of a site that has learned the only round of an experiment with the model."""
    for seed, (split, label) in enumerate((split, label) for split in ("train", "test") for label in CLASSES):
        write_photographs(folder / "images" / split / label, 2, seed)
    site = folder / "site.toml"
    site.write_text(
        f'name = "north"\nregistry = "registry"\nmodel = "{model}"\n[data]\nsource = "folder"\npath = "images"\n'
    )
    (folder / "policy.toml").write_text(POLICY)
    (folder / "policy.toml").chmod(0o640)
    built = build_agent(load_site(site))
    experiment = _experiment(built.backbone.width, built.backbone.fingerprint)
    start = np.zeros(experiment.context_shape, "<f4")
    built.agent.train(TrainRequest(experiment, 1, start, evaluate=False))
    built.agent.evaluate(EvaluateRequest(experiment, 1, start))
    built.lock.release()
    return site


def _experiment(width: int, fingerprint: str) -> Experiment:
    return Experiment(
        name="pilot",
        classes=CLASSES,
        sites=("north", "south"),
        model=ModelSettings(id="hospital/model", width=width, fingerprint=fingerprint),
        prompt=PromptSettings(num_context=16, rank=2, method="promptfl"),
        privacy=PrivacySettings(noise_multiplier=2.0, nominal_site_size=8),
        rounds=RoundSettings(number=1, local_steps=1),
    )


def _export_seconds(folder: Path) -> float:
    """CPU seconds of writing an export; the model is loaded before."""
    backbone = load_backbone(str(_with_large_vocabulary(folder / "model")))
    experiment = _experiment(backbone.width, backbone.fingerprint)
    context = np.random.default_rng(0).normal(0, 0.3, experiment.context_shape).astype(np.float32)
    prompt = SitePrompt(experiment, context, np.zeros(context.shape), 1)
    return cpu_seconds(lambda: write_export(prompt, backbone, folder / "export", Facts(site="north")))


def _with_large_vocabulary(folder: Path) -> Path:
    """A small random CLIP whose tokenizer has as many entries as the published one."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

    folder.mkdir(parents=True)
    letters = sorted(ByteLevel.alphabet())
    entries = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    common = [letter for letter in letters if letter.isascii() and letter.islower()]
    starts = list(common)
    while len(merges) < MERGES:  # words grow by a letter, as a learned vocabulary's do; half of them end there
        start = starts.pop(0)
        for letter in common:
            merges += [(start, letter), (start, f"{letter}</w>")]
            starts.append(start + letter)
    merges = merges[:MERGES]
    entries += ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({entry: place for place, entry in enumerate(entries)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]))
    roles = dict.fromkeys(("unk_token", "eos_token", "pad_token"), entries[-1])
    config = {"tokenizer_class": "CLIPTokenizer", "bos_token": entries[-2], "model_max_length": 77, **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2}
    text = {**small, "vocab_size": len(tokenizer), "projection_dim": 64}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={**small, "image_size": 32}, projection_dim=64))
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def _program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _child_seconds(command: Sequence[str]) -> float:
    """CPU seconds of a program and what it starts."""
    before = os.times()
    _run(command)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """On one thread, as everything here."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
