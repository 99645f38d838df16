"""``docs/results/performance.md`` from bench.json: tables and plots, nothing that was not measured."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from research.speed.secure_cost import HEAD, secure_table

__all__ = ["performance_page", "write_performance", "write_plots"]


# The pictures of ``docs/results/performance.md``.


COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#f0e442")


def write_plots(result: Mapping[str, Any], names: Mapping[str, str], folder: Path) -> None:
    """Write steps.svg, round.svg and simulation.svg.

    Args:
        result: what bench.json holds.
        names: the contestants, in the order of the page.
        folder: made if missing.
    """
    import matplotlib as mpl  # seconds; nothing else needs it

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "dpfpl"
    folder.mkdir(parents=True, exist_ok=True)
    for name, size, draw in (
        ("steps", (8, 4.2), lambda axis: _steps(axis, result["steps"], names)),
        ("round", (8, 2.2), lambda axis: _round(axis, result["profile"])),
        ("simulation", (8, 2.6), lambda axis: _simulation(axis, result["simulation"])),
    ):
        _save(folder / f"{name}.svg", size, draw)


def _save(path: Path, size: tuple[float, float], draw: Any) -> None:
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=size, layout="constrained")
    draw(axis)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _steps(axis: Any, steps: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Bars of CPU time over D for every contestant."""
    shown = [name for name in names if any(name in rows for rows in steps.values())]
    for number, (classes, rows) in enumerate(steps.items()):
        present = [(place, rows[name]["ratio"]) for place, name in enumerate(shown) if name in rows]
        heights = [place + 0.2 * (2 * number - 1) for place, _ in present]
        axis.barh(heights, [ratio for _, ratio in present], 0.38, color=COLOURS[number], label=f"{classes} classes")
    axis.set_yticks(range(len(shown)), [name.replace("_", " ") for name in shown])
    axis.set_xscale("log")
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.set_xlabel("CPU time over D")
    axis.invert_yaxis()
    axis.legend(frameon=False)


def _round(axis: Any, profile: Mapping[str, Any]) -> None:
    """Two bars, before and after, of the parts of a round."""
    left = [0.0, 0.0]
    whole = [profile["before"], profile["after"]]
    for number, part in enumerate(whole[0]["shares"]):
        widths = [1e3 * one["shares"][part] * one["cpu_seconds_a_round"] for one in whole]
        axis.barh(["before", "after"], widths, left=left, color=COLOURS[number % len(COLOURS)], label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set_xlabel("CPU ms a round")
    axis.legend(frameon=False, fontsize="small", ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.3))


def _simulation(axis: Any, rows: Any) -> None:
    """CPU time of one site's share of a round, by the number of sites."""
    axis.plot(
        [r["sites"] for r in rows], [r["cpu_milliseconds_a_round_and_site"] for r in rows], "o-", color=COLOURS[0]
    )
    axis.set_xscale("log")
    axis.set_ylim(bottom=0.0)
    axis.set_xlabel("sites")
    axis.set_ylabel("CPU ms a round and site")


NAMES: Final = {
    "published_replica": "replica of the published step's cost: image tower every step, 77 tokens, copies",
    "hugging_face": "Hugging Face text tower at 77 tokens, image features cached",
    "truncated": "the same, cut at the longest class prompt",
    "shared_prefix": "**D**: begin token and context once for all classes, autograd",
    "fast": "ours, without privacy",
    "naive": "private, naive: the context expanded for each example",
    "naive_opacus": "the same through Opacus' optimizer",
    "naive_part": "private, naive, 2 of the 32 examples",
    "batched_autograd": "private, batched autograd on D",
    "private": "**private, exact, ours**",
    "private_bfloat16": "private, ours, products rounded to bfloat16",
    "private_few": "private, ours, 3 classes of each example",
    "private_few_bfloat16": "private, ours, 3 classes and bfloat16",
    "private_160": "private, exact, ours, 160 examples",
    "private_bfloat16_160": "private, ours, bfloat16, 160 examples",
    "private_few_bfloat16_160": "private, ours, 3 classes and bfloat16, 160 examples",
}


def write_performance(bench: Path, docs: Path) -> Path:
    """Write ``performance.md`` and its pictures into ``docs``; returns the page."""
    result = json.loads(bench.read_text())
    page = docs / "performance.md"
    write_plots(result, NAMES, docs / "performance")
    page.write_text(performance_page(result))
    return page


WAYS: Final = {
    "transformers": "`transformers`, float32",
    "ours": "the agent, cold cache",
    "bfloat16": "`transformers`, bfloat16 by autocast",
    "openvino": "OpenVINO, float32",
    "onnxruntime": "ONNX Runtime, float32",
}
FIRST_DAY: Final = 2000
PROGRAMS: Final = {
    "predict": "`predict`, one image",
    "predict --served": "the same while `serve` runs: `predict --served`",
    "least": "the same by hand: loading with `transformers` and one forward",
}


def performance_page(result: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    parts = [_prose("introduction"), _machine(result), _targets(result["targets"], gpu=bool(result.get("gpu")))]
    parts.append("## One step\n\n![ratios](performance/steps.svg)\n\n" + _steps_section(result["steps"]) + "\n")
    parts.append(_floor(result))
    if result.get("memory"):
        parts.append(_memory(result["memory"]))
    if result.get("estimates"):
        parts.append(_estimates(result["estimates"]))
    parts.append(_cache(result["cache"]))
    if result.get("images"):
        parts.append(_images(result["images"]))
    if result.get("pooling"):
        parts.append(_pooling(result["pooling"]))
    if result.get("secure"):
        parts.append(_secure(result["secure"]))
    if result.get("starting"):
        parts.append(_starting(result["starting"]))
    parts += [_simulation_section(result["simulation"]), _profile(result["profile"])]
    if result.get("deployed"):
        parts.append(_deployed(result["deployed"]))
    parts.append(_gpu(result.get("gpu") or []))
    parts.append(_prose("ideas"))
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def _prose(name: str) -> str:
    return (files("research.speed") / f"{name}.md").read_text()


def _machine(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "transformers", "opacus", "flwr"))
    load = machine["load_average"]
    return (
        f"Measured on {machine['processor']}, {machine['cores']} cores, one thread used, {machine['capability']}, "
        f"kernels of {machine['kernel_chosen']}; {versions}; {result['seconds']:.0f} s in all"
        + (f"; load average at the start {load[0]:.1f}." if load else ".")
        + (f" {result['note']}\n" if "note" in result else "\n")
    )


def _targets(rows: Sequence[Mapping[str, Any]], *, gpu: bool) -> str:
    body = [[row["name"], f"{row['measured']:.3g}", row["target"], "yes" if row["met"] else "**no**"] for row in rows]
    text = "## Targets\n\n" + _table(("what", "measured", "target", "met"), body)
    missed = [row for row in rows if not row["met"]]
    if missed:
        text += (
            f"\n{len(missed)} of {len(rows)} are missed in this run; the last section says what stands in the way.\n"
        )
    else:
        text += "\nAll are met.\n"
    if not gpu:
        text += "\nThe target for GPUs was not measured: there was none.\n"
    return text


def _steps_section(steps: Mapping[str, Any]) -> str:
    rows = []
    for name, label in NAMES.items():
        cells = [label]
        for classes in ("10", "100"):
            row = steps.get(classes, {}).get(name)
            if row is None:
                cells += ["", ""]
                continue
            low, high = row["ratio_range"]
            cells += [f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})", f"{row['cpu_seconds']:.2f}"]
        if any(cells[1:]):
            rows.append(cells)
    return _table(("one step", "10 classes, over D", "CPU s", "100 classes, over D", "CPU s"), rows)


def _floor(result: Mapping[str, Any]) -> str:
    rate = result["rate"]
    lines = []
    for classes, steps in result["steps"].items():
        unit = steps["shared_prefix"]["cpu_seconds"]
        replica = steps.get("published_replica", {}).get("cpu_seconds")
        naive = steps.get("naive", {}).get("cpu_seconds") or steps.get("naive_part", {}).get(
            "cpu_seconds_of_whole_batch"
        )
        for name in ("fast", "private"):
            row = steps[name]
            least = row["flops"] / rate["chosen"]
            lines.append(
                [
                    f"{NAMES[name]}, {classes} classes",
                    f"{row['flops'] / 1e9:.0f}",
                    f"{100 * least / row['cpu_seconds']:.0f} %",
                    f"{least / unit:.2f}",
                    *(f"{each / least:.0f}" if each and name == "private" else "" for each in (replica, naive)),
                ]
            )
    head = ("step", "GFLOP needed", "share of the time", "floor over D", "replica over it", "naive over it")
    return (
        "## Distance to the floor\n\n"
        f"In one product of {rate['rows']} rows a thread reaches {rate['chosen'] / 1e9:.0f} GFLOP/s with the chosen "
        f"kernel, {rate['default'] / 1e9:.0f} with torch's default, {rate['bfloat16'] / 1e9:.0f} in bfloat16. At the "
        "first rate the products that no exact way can avoid would take this share of the time measured. The last "
        "columns are what a step of nothing but these products would be over D, and the two others over it.\n\n"
        + _table(head, lines)
    )


def _memory(memory: Mapping[str, Any]) -> str:
    rows = [[NAMES[name], f"{value / 2**20:.0f}"] for name, value in memory.items() if value is not None]
    return "## Memory of one private step\n\n32 examples, 10 classes, beyond the model, at the peak.\n\n" + _table(
        ("step", "MiB"), rows
    )


def _estimates(rows: Sequence[Mapping[str, Any]]) -> str:
    body = [
        [row["estimate"], *(f"{row[where]:.1f} ± {row[where + '_spread']:.1f}" for where in ("local", "neighbour"))]
        for row in rows
    ]
    return (
        "## What estimates cost in accuracy\n\n"
        "The demo's digits, four sites, ten rounds, noise multiplier 1; mean and deviation over "
        f"{rows[0]['seeds']} seeds, the same for each row.\n\n"
        + _table(("gradients", "local accuracy, %", "neighbour accuracy, %"), body)
    )


def _cache(cache: Mapping[str, Any]) -> str:
    return (
        f"## Image features\n\n{cache['images']} images through the embedded model: decoding "
        f"{cache['decoding_cpu_seconds']:.2f} s and the tower's own forward {cache['forward_cpu_seconds']:.2f} s; with "
        f"a cold cache {cache['cold_cpu_seconds']:.2f} s, with a warm one {cache['warm_cpu_seconds']:.3f} s (CPU).\n"
    )


def _images(images: Mapping[str, Any]) -> str:
    body = [
        [
            WAYS[way],
            f"{1e3 * row['cpu_seconds_an_image']:.0f}",
            f"{row['over_transformers']:.2f}",
            f"{row['error']:.0e}",
        ]
        for way, row in images["ways"].items()
    ]
    edge, count = images["edge"], images["images"]
    return (
        f"## Photographs to features\n\nJPEG files of {edge} x {edge} pixels through ViT-B/16's image tower, {count} "
        f"at a time. Decoding one takes {1e3 * images['decoding_an_image']:.1f} ms of this, and what else comes before "
        f"the tower {1e3 * images['preparing_an_image']:.1f} ms.\n\n"
        + _table(("way", "CPU ms an image", "over transformers", "error of a unit feature"), body)
        + "\n"
        + _first_day(images)
    )


def _first_day(images: Mapping[str, Any]) -> str:
    """Of a site with 2,000 such images: before, through transformers' own tower, and now."""
    ours, before = (images["ways"][way]["cpu_seconds_an_image"] for way in ("ours", "transformers"))
    decoding, preparing = images["decoding_an_image"], images["preparing_an_image"]
    rows = [("decoding", decoding, decoding), ("preparing", preparing, preparing)]
    rows.append(("tower, keys and cache", before - decoding - preparing, ours - decoding - preparing))
    rows.append(("**all**", before, ours))
    body = [[part, *(f"{FIRST_DAY * value:.0f}" for value in seconds)] for part, *seconds in rows]
    return (
        f"The first day of a site with {FIRST_DAY:,} of them, CPU seconds: {FIRST_DAY:,} times an image of this run. "
        "From the second day on the features come from the cache.\n\n"
        + _table(("part", "with `transformers`' own tower", "now"), body)
    )


def _pooling(rows: Sequence[Mapping[str, Any]]) -> str:
    body = [
        [
            f"{row['sites']:,}",
            f"{row['cpu_seconds']:.2f}",
            f"{row['over_sum']:.1f}",
            f"{row['bytes_over_one_site']:.0f}",
        ]
        for row in rows
    ]
    return (
        "## Pooling\n\nThe class sums of many sites, 100 classes of 512 numbers. The rows are read three times.\n\n"
        + _table(("sites", "CPU s", "over their sum alone", "memory at the peak, in one site's rows"), body)
    )


def _secure(rows: list[dict[str, Any]]) -> str:
    return (
        "## Secure sums\n\nOf the same class sums, all sites in one process and the server in its own; a tenth of the "
        "sites drops out. The server's memory is beyond its program's.\n\n" + _table(HEAD, secure_table(rows))
    )


def _starting(starting: Mapping[str, Any]) -> str:
    rows = [[PROGRAMS.get(name, f"`{name}`"), f"{value:.2f}"] for name, value in starting["cpu_seconds"].items()]
    rows.append(
        ["export with a vocabulary as large as CLIP's, without loading", f"{starting['export_cpu_seconds']:.2f}"]
    )
    parts = sorted(starting["predict_parts"].items(), key=lambda pair: -pair[1])
    return (
        "## Commands\n\nWhole programs, on one thread; the model has ViT-B/16's shapes.\n\n"
        + _table(("command", "CPU s"), rows)
        + "\nOne more `predict` of one image, where its time goes:\n\n"
        + _table(("part", "CPU s"), [[part, f"{value:.2f}"] for part, value in parts])
    )


def _simulation_section(rows: Sequence[Mapping[str, Any]]) -> str:
    body = [
        [
            str(row["sites"]),
            f"{row['cpu_seconds_a_round']:.2f}",
            f"{row['cpu_milliseconds_a_round_and_site']:.1f}",
            f"{row['bytes_a_site'] / 2**10:.0f}",
        ]
        for row in rows
    ]
    return (
        "## Simulated rounds\n\n"
        "One process, embedded model, one noised step a round and site, 30 of 60 images in it on average.\n\n"
        "![simulated rounds](performance/simulation.svg)\n\n"
        + _table(("sites", "CPU s a round", "CPU ms a round and site", "KiB a site beyond the model"), body)
    )


def _profile(profile: Mapping[str, Any]) -> str:
    before, after = profile["before"], profile["after"]
    rows = [
        [part, *(f"{1e3 * one['shares'][part] * one['cpu_seconds_a_round']:.0f}" for one in (before, after))]
        for part, _ in sorted(before["shares"].items(), key=lambda pair: -pair[1])
    ]
    rows.append(["**all**", *(f"**{1e3 * one['cpu_seconds_a_round']:.0f}**" for one in (before, after))])
    return (
        f"## A round of the embedded demo\n\n{profile['sites']} sites of {profile['local_steps']} steps each, in one "
        "process; CPU milliseconds a round, split as a profiler finds the shares. Before: the shared prefix under "
        "autograd, 64 examples at a time. After: the text tower written out by hand.\n\n"
        "![profile](performance/round.svg)\n\n" + _table(("part", "before, ms", "after, ms"), rows)
    )


def _deployed(deployed: Mapping[str, Any]) -> str:
    return (
        "## A deployed round\n\nSeparate processes, TLS, four sites on one machine: "
        f"{deployed['round_s']:.2f} s a round, of which the slowest site computes {deployed['slowest_site_s']:.2f} s; "
        "a round that carries nothing, between the same processes, takes "
        f"{deployed['empty_round_s']:.2f} s (medians, wall clock). In all {deployed['number']} rounds and for the "
        f"scores after them the server sent to all sites {deployed['exchanges']} times.\n"
    )


def _gpu(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return (
            "## GPU\n\n"
            "No GPU in the machine that measured; the code is written for any device but was not run on one.\n"
        )
    body = [
        [
            str(r["classes"]),
            str(r["batch"]),
            r["precision"],
            f"{1e3 * r['private_seconds']:.1f}",
            f"{r['private_over_plain']:.2f}",
        ]
        for r in rows
    ]
    head = ("classes", "examples", "precision", "private step, ms", "over the plain step")
    return f"## GPU\n\n{rows[0]['device']}, wall clock.\n\n" + _table(head, body)
