"""``dpfpl-bench audit``: attack a training as an outsider would, and hold the success against the claim."""

import dataclasses
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dpfpl_bench.simulation import SHOWN
from dpfpl_common.errors import ConfigError

__all__ = ["EXAMPLES", "audit"]

EXAMPLES = """
Examples:

  dpfpl-bench audit --data digits --epsilon 8

  dpfpl-bench audit --data IMAGE_FOLDER --method fedotp --epsilon 2 --quick --json --out audit.json

  dpfpl-bench audit --demo runs/demo --seeds 3 --quick

  dpfpl-bench audit --data digits --mechanism per_step --epsilon 2
"""


def audit(
    data: Annotated[str, typer.Option(help="digits, shapes, an image folder, a .csv or a hub id")] = "digits",
    model: Annotated[str, typer.Option(help="embedded, a folder or hub id of the CLIP family")] = "embedded",
    method: Annotated[
        str | None, typer.Option(help="dpfpl, dplora, fedotp, fedpgp or promptfl", show_default=SHOWN["method"])
    ] = None,
    rank: Annotated[int | None, typer.Option(help="rank of the personal factors", show_default=SHOWN["rank"])] = None,
    epsilon: Annotated[float, typer.Option(help="what is claimed towards a prompt's recipient")] = 8.0,
    delta: Annotated[float | None, typer.Option(help="delta of the claim", show_default=SHOWN["delta"])] = None,
    sites: Annotated[
        int | None,
        typer.Option(
            min=1, help="sites that the data is split among; the first is attacked", show_default=SHOWN["sites"]
        ),
    ] = None,
    partition: Annotated[
        str | None, typer.Option(help="pathological, dirichlet, domain or iid", show_default=SHOWN["partition"])
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="federated rounds", show_default=SHOWN["rounds"])] = None,
    local_steps: Annotated[
        int | None, typer.Option(min=1, help="noised steps in one round", show_default=SHOWN["local_steps"])
    ] = None,
    clipping_norm: Annotated[
        float | None, typer.Option(help="L2 bound of one example's gradient", show_default=SHOWN["clipping_norm"])
    ] = None,
    mechanism: Annotated[
        str,
        typer.Option(
            help="one_shot attacks the class sums (what run releases by default); per_step attacks every step"
        ),
    ] = "one_shot",
    seed: Annotated[int, typer.Option(min=0, help="of partition, canaries, sampling and noise; the first of them")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="repetitions, combined by a fixed rule")] = 1,
    demo: Annotated[
        Path | None, typer.Option(file_okay=False, help="a demo's folder: attack what its sites released, too")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="a fifth of the trials: looser bounds")] = False,
    online: Annotated[bool, typer.Option("--online", help="let hub ids be downloaded")] = False,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="where to write the findings as JSON")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of the table")] = False,
) -> None:
    """Attack one site's training, with its noise and with the noise off.

    Over several seeds a bound is the largest with noise and the smallest without; rates are means.

    Exit codes: 0 every claim holds, 1 an attack learned more than is claimed, 2 bad input.
    """
    import torch

    from dpfpl_bench.audit.audit import AuditSettings
    from dpfpl_bench.audit.audit import audit as attack
    from dpfpl_bench.audit.bounds import Finding, combined
    from dpfpl_bench.simulation.in_process import prepare_sites
    from dpfpl_bench.simulation.run import sites_data
    from dpfpl_bench.simulation.settings import build_experiment
    from dpfpl_bench.simulation.simulate import make_request
    from dpfpl_client.agent.features import FeatureCache
    from dpfpl_client.models.dual_encoder import as_dual_encoder
    from dpfpl_client.models.loader import load_backbone
    from dpfpl_common.config import to_table

    torch.set_num_threads(1)
    if not epsilon > 0:
        raise ConfigError(
            code="IMPOSSIBLE_VALUE", message=f"--epsilon is {epsilon:g}.", advice="Give a number above 0."
        )
    console = Console(stderr=True, markup=False, highlight=False)

    def told(text: str) -> None:
        console.print(f"{text} ...")

    findings: list[Finding] = []
    if demo is not None:
        from dpfpl_bench.audit.membership import audit_released, open_demo

        with TemporaryDirectory() as cache:
            opened = open_demo(demo, Path(cache))
        experiment, backbone, train = opened.experiment, opened.backbone, opened.sites[0].features.train
        findings = audit_released(opened, seeds, told)
    else:
        others = {
            "privacy.target_delta": delta,
            "privacy.clipping_norm": clipping_norm,
            "rounds.local_steps": local_steps,
        }
        request = make_request(
            data,
            [f"{key}={value}" for key, value in others.items() if value is not None],
            model=model,
            method=method,
            rank=rank,
            mechanism=mechanism,
            epsilon=epsilon,
            sites=sites,
            partition=partition,
            rounds=rounds,
            seed=seed,
            online=online,
        )
        names, classes, parts = sites_data(request, told)
        backbone = as_dual_encoder(load_backbone(request.model, offline=request.offline))
        prepared = prepare_sites(parts, classes, FeatureCache(None, backbone), names)
        experiment = build_experiment("audit", request, backbone, classes, prepared)
        train = prepared[0].features.train
    effort = AuditSettings(seed=seed)
    if quick:
        effort = dataclasses.replace(effort, canaries=60, trials=400, trainings=12, inversions=4)
    found = []
    for number in range(seed, seed + seeds):
        told(f"seed {number}")
        found.append(attack(backbone, experiment, train, dataclasses.replace(effort, seed=number), told))
    findings += combined(found)
    report = {
        "config": to_table(experiment),
        "effort": to_table(effort),
        "seeds": list(range(seed, seed + seeds)),
        "findings": [to_table(finding) for finding in findings],
    }
    text = json.dumps(report, indent=2) + "\n"
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
    if as_json:
        sys.stdout.write(text)
    else:
        Console(markup=False, highlight=False).print(_table(findings))
    if not all(finding.holds for finding in findings if finding.claimed_epsilon is not None):
        sys.exit(1)


def _table(findings: list) -> Table:  # type: ignore[type-arg]
    table = Table(title="What attacks learn, with the noise and with the noise off", box=None, pad_edge=False)
    table.add_column("attack", ratio=3)
    table.add_column("measure", ratio=3)
    for name in ("noise", "off", "guess", "claim"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for f in findings:
        claim = "" if f.claimed_epsilon is None else _number(f.claimed_epsilon)
        if f.claimed_epsilon is not None and not f.holds:
            verdict = "BROKEN"
        elif not f.alive:
            verdict = "weak attack"
        else:
            verdict = "holds" if f.holds else "noise hides little"
        numbers = (_number(f.with_noise), _number(f.noise_off), _number(f.guess), claim)
        table.add_row(f"{f.attack} ({f.adversary})", f.measure, *numbers, verdict)
    table.caption = "weak attack: it hardly succeeds even with the noise off, so its failure proves little"
    return table


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2f}"
