"""What docs/howto/operator.md shows of ``watch`` and of a stuck federation's ``status`` is what they say today."""

import re
from pathlib import Path

import pytest
from rich.console import Console
from server_samples import entry, keep, make_experiment

from dpfpl_server.cli.options import exit_code_of_state
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.runs.state import run_state
from dpfpl_server.watch.terminal import LiveDisplay

GUIDE = (Path(__file__).parents[2] / "docs/howto/operator.md").read_text(encoding="utf-8")
EXPERIMENT = make_experiment(name="xrays-1", rounds={"number": 8})
WAITING = {
    "phase": "WAITING_FOR_SITES",
    "round": 1,
    "connected": 1,
    "sites": 2,
    "waiting_for": ["south"],
    "text": "WAITING_FOR_SITES (1/2, missing: south), at most 120 s",
}


def shown_after(words: str) -> list[str]:
    """The block of the guide that follows these words, its numbers and bars made equal."""
    block = GUIDE.split(words)[1].split("```")[1].strip("\n")
    return [line for line in map(same, block.splitlines()) if not line.startswith("$ ")]


def same(line: str) -> str:
    line = re.sub(r"^(xrays-1)[━╸╺ ]{9,}", r"\1 BAR ", line)
    return re.sub(r"\d+\.\d (s|%)", r"N \1", line).rstrip()


def rendered(display: LiveDisplay) -> list[str]:
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(display._render())
    return [same(line) for line in capture.get().splitlines()]


def done(number: int) -> dict[str, object]:
    return entry(number, phase="ROUND_DONE", metrics={site: {"personal_local": 0.845} for site in ("north", "south")})


def test_watch_looks_as_the_guide_shows_it() -> None:
    display = LiveDisplay("xrays-1", 8, console=Console(width=120))
    for event in (done(3), {"phase": "TRAINING", "round": 4, "waiting_for": ["north"]}):
        display.state = display.state.after(event)
    assert rendered(display) == shown_after("started in another terminal than `run`:")


def test_watch_of_a_stuck_federation_looks_as_the_guide_shows_it() -> None:
    display = LiveDisplay("xrays-1", 8, console=Console(width=120))
    display.state = display.state.after(WAITING)
    assert rendered(display) == shown_after("`watch` meanwhile:")


@pytest.mark.parametrize("kept", [0, 2])
def test_O9_the_status_of_a_stuck_federation_is_what_the_guide_shows(tmp_path: Path, kept: int) -> None:
    folder = RunFolder(tmp_path / "xrays-1")
    folder.begin(EXPERIMENT)
    folder.store.begin_attempt(5)
    if kept:
        keep(folder, *(entry(number) for number in range(1, kept + 1)))
    folder.add_event(WAITING)
    with folder.server_pulse(), folder.supervisor_pulse():
        state = run_state(folder)
        shown = shown_after("one of two sites is not connected.")
        shown[0] = shown[0].replace("round 0", f"round {kept}")
        assert [same(line) for line in state.lines()] == shown
        assert exit_code_of_state(state.state) == 5
