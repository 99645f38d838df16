"""What the terminal shows follows the strategy's statuses, and says nothing that the result does not."""

import io

import pytest
from rich.console import Console
from server_samples import make_experiment

from dpfpl_server.runs.result import build_result
from dpfpl_server.runs.state import LiveState
from dpfpl_server.runs.words import epsilon_text
from dpfpl_server.watch.terminal import LiveDisplay, print_result

DONE = {
    "phase": "ROUND_DONE",
    "round": 2,
    "seconds": 3.25,
    "bytes_up": 4000,
    "bytes_down": 17000,
    "sites": ["north"],
    "dropped": {"south": "NO_REPLY: nothing came within 300 s"},
    "metrics": {"north": {"personal_local": 0.713}},
}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def plain():
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def shown(statuses, console=None):
    console = console or plain()
    with LiveDisplay("pilot", 10, console=console, clock=Clock()) as display:
        for status in statuses:
            display.update(status)
    return console.file.getvalue()


def make_result(completed=2, final=None, **privacy):
    experiment = make_experiment(rounds={"number": 2}, **{"noise_multiplier": 2.0, **privacy})
    first = {"north": {"personal_local": 0.5031, "personal_neighbour": 0.4021}}
    history = [DONE | {"round": k, "metrics": first if k == 1 else {}} for k in range(1, completed + 1)]
    final = (
        {"north": {"personal_local": 0.8123, "personal_neighbour": 0.4444, "global_local": 0.7, "zero_shot_local": 0.5}}
        if final is None
        else final
    )
    return build_result(
        experiment,
        transport="grpc+tls",
        history=history,
        final=final,
        num_classes={},
        seconds=12.5,
        real_noise=privacy.get("trust") != "central",
    )


def printed(result, width=120):
    console = Console(file=io.StringIO(), force_terminal=False, width=width)
    print_result(result, console)
    return console.file.getvalue()


def test_U9_a_flagged_site_is_named_after_the_run():
    result = make_result()
    assert "Ask about" not in printed(result)
    result["sites"][1]["flag"] = "zero_signal"
    assert "Ask about: south (zero_signal)" in printed(result)


def test_a_run_that_found_nothing_says_so_first():
    evidence = {"classes_found": 0, "classes": 2, "votes": 0.0, "votes_needed": 3.0, "warning": "Nothing stands out."}
    text = printed(make_result() | {"chosen": "text", "evidence": evidence})
    assert text.splitlines()[0].startswith("Nothing was found: at this epsilon no class of any site stands out")
    assert not printed(make_result()).startswith("Nothing was found")


def test_plain_output_is_one_line_a_change_without_escape_codes():
    training = [{"phase": "TRAINING", "round": 2, "waiting_for": w} for w in (["north", "south"], ["south"], [])]
    text = shown([*training, DONE, DONE, {"phase": "FINISHED", "round": 10}])
    lines = text.splitlines()
    assert len(lines) == 3
    assert "\x1b" not in text
    assert lines[0].startswith("pilot [1/10]")
    assert "round 2: training, waiting for north, south" in lines[0]
    assert "round 2: done in 3.2 s, 1 site, 4.0 kB up, 17.0 kB down" in lines[1]
    assert "left out south (NO_REPLY: nothing came within 300 s)" in lines[1]
    assert "mean local accuracy 71.3 % after 1 round" in lines[1]
    assert "[10/10]" in lines[2]


def test_waiting_names_the_missing_sites_once():
    waiting = {"phase": "WAITING_FOR_SITES", "round": 1, "connected": 1, "sites": 2, "waiting_for": ["south"]}
    lines = shown([waiting] * 20).splitlines()
    assert len(lines) == 1
    assert "waiting for south (1 of 2 connected)" in lines[0]


def test_a_live_terminal_shows_bar_sites_and_accuracy():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None, legacy_windows=False)
    text = shown([{"phase": "TRAINING", "round": 2, "waiting_for": ["north", "south"]}, DONE], console)
    assert "2/10 rounds" in text
    assert "north  round 2 done" in text
    assert "left out of round 2: NO_REPLY" in text
    assert "mean local accuracy: 71.3 % after 1 round" in text


def test_an_abandoned_round_stays_on_the_screen():
    status = {"phase": "ROUND_ABANDONED", "round": 3, "attempt": 1, "reasons": "south: NO_REPLY"}
    for console in (plain(), Console(file=io.StringIO(), force_terminal=True, width=100)):
        assert "round 3: attempt 1 abandoned (south: NO_REPLY)" in shown([status], console)


def test_the_display_stops_when_the_run_fails():
    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(RuntimeError), LiveDisplay("pilot", 10, console=console) as display:
        raise RuntimeError
    assert display._live is None


def test_elapsed_time_is_shown():
    console, clock = plain(), Clock()
    with LiveDisplay("pilot", 10, console=console, clock=clock) as display:
        clock.now = 125.0
        display.update(DONE)
    assert "2 min 05 s" in console.file.getvalue()


@pytest.mark.parametrize("status", [{}, {"phase": "NEW_PHASE"}, {"phase": "STARTING", "text": "starting sites"}])
def test_an_unknown_status_is_shown_not_refused(status):
    assert LiveState(10).after(status).activity in ("working", "NEW_PHASE", "starting sites")


def test_what_sites_say_cannot_steer_the_terminal():
    hostile = DONE | {"dropped": {"south": "\x1b]0;owned\x07 [bold red]boo[/] \r\nnext"}}
    text = shown([hostile])
    assert not {"\x1b", "\x07", "\r"} & set(text)
    assert "[bold red]boo[/]" in text
    assert len(text.splitlines()) == 1


def test_state_follows_the_rounds_of_a_resumed_run():
    state = LiveState(10).after({"phase": "TRAINING", "round": 7, "waiting_for": ["north"]})
    assert (state.completed, dict(state.sites)) == (6, {"north": "training"})
    state = state.after({"phase": "TRAINING", "round": 7, "waiting_for": []})
    assert dict(state.sites) == {"north": "answered"}
    state = state.after({"phase": "EVALUATING", "round": 7, "waiting_for": ["north"]})
    assert (state.completed, dict(state.sites)) == (7, {"north": "evaluating"})


def test_accuracy_stays_that_of_the_last_round_that_reported():
    state = LiveState(10).after(DONE).after(DONE | {"round": 3, "metrics": {}})
    assert state.accuracy_text == "71.3 % after 1 round"
    assert LiveState(10).accuracy_text == "not reported yet"


@pytest.mark.privacy
def test_the_final_table_has_the_results_numbers():
    result = make_result()
    text = printed(result)
    assert "50.3 → 81.2" in text
    assert "+30.9" in text
    assert "40.2 → 44.4" in text
    assert "70.0 %" in text
    assert "A round (median): 3.2 s, 4.0 kB from the sites, 17.0 kB to them" in text
    assert "Answers left out: 2" in text
    for entry in result["privacy"]["epsilons"]:
        row = next(line for line in text.splitlines() if line.strip().startswith(entry["who"]))
        assert row.split()[-2:] == [epsilon_text(entry["epsilon"]), "1e-05"]


@pytest.mark.privacy
def test_the_final_table_names_infinite_epsilons_and_seeded_noise():
    text = printed(make_result(trust="central"))
    assert "infinite" in text
    assert "seeded: a simulation" in text
    assert "differential" not in text.lower()


def test_missing_metrics_are_dashes():
    assert "–" in printed(make_result(final={"north": {"personal_local": 0.8}}))


def test_where_sites_release_no_accuracy_no_table_is_all_dashes():
    text = printed(make_result(completed=0, final={}))
    assert "No round was completed." in text
    assert "Compared with" not in text
    assert "accuracy before" not in text
    assert "Compared with" in printed(make_result())


def test_names_are_not_markup():
    result = make_result()
    result["sites"][0]["name"] = "[red]x[/red]\x1b[2J"
    text = printed(result)
    assert "[red]x[/red]" in text
    assert "\x1b" not in text


def test_a_narrow_terminal_gets_every_number():
    text = printed(make_result(), width=60)
    assert max(map(len, text.splitlines()[:8])) <= 60
    assert "81.2" in text
