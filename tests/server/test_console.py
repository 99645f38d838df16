"""What the live page is told: the state on disk, never more than the server can know, and only to who may ask."""

import asyncio
import json

import httpx
import pytest
from console_samples import SITES, Run

from dpfpl_common.errors import ConfigError, DeploymentError, StateError
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy_plan import planned_events
from dpfpl_server.watch.console.app import MAX_STREAMS, STATIC, Watcher, console_app, serve_console
from dpfpl_server.watch.console.snapshot import LOG_LINES, list_experiments, snapshot, tail


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path / "runs" / "xrays-1")
    yield made
    made.close()


def look(run):
    return snapshot(run.folder, run.connections, [])


def ask(run, path, connections=None):
    watcher = Watcher(run.path.parent, connections or (lambda: run.connections), run.path.parent / "server.log")

    async def go():
        transport = httpx.ASGITransport(console_app(watcher))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path)

    return asyncio.run(go())


def test_what_is_waited_for_and_what_each_site_does(run):
    run.train(1, waiting=["clinic-b", "hospital-a"])
    seen = look(run)
    assert (seen["round"], seen["rounds"], seen["waiting_for"]) == (0, 8, ["clinic-b", "hospital-a"])
    doing = {site["name"]: site["doing"] for site in seen["sites"]}
    assert (doing["clinic-b"], doing["hospital-a"]) == ("training", "training")
    assert {site["name"]: site["connection"] for site in seen["sites"]} == run.connections
    assert json.loads(json.dumps(seen)) == seen


def test_refused_replies_are_shown_with_their_reason(run):
    run.complete(1, dropped={"clinic-b": "REFUSED BUDGET_EXHAUSTED: max_epsilon_lifetime Ask the site."})
    (drop,) = look(run)["drops"]
    assert (drop["round"], drop["site"]) == ("1", "clinic-b")
    assert "BUDGET_EXHAUSTED" in drop["code"] + drop["reason"]


def test_one_refusal_is_one_line_however_many_sites_and_attempts_it_took(run):
    reason = "REFUSED EPSILON_OVER_CAP: max_epsilon_per_experiment At most 10."
    for attempt in (1, 2, 3):
        dropped = dict.fromkeys(SITES, reason)
        codes = dict.fromkeys(SITES, "REFUSED EPSILON_OVER_CAP")
        event = {"phase": "ROUND_ABANDONED", "round": 1, "attempt": attempt, "dropped": dropped, "codes": codes}
        run.folder.add_event(event)
    assert len(run.folder.store.drops()) == 3 * len(SITES)
    (line,) = look(run)["drops"]
    assert (line["round"], line["attempt"]) == ("1", "1, 2, 3")
    assert line["site"] == ", ".join(sorted(SITES))
    assert line["reason"] == reason


@pytest.mark.privacy
def test_epsilon_of_a_site_counts_every_round_that_may_have_been_charged(run):
    """An answer that was rejected or late may have been charged at the site: never less than that is shown."""
    run.complete(1)
    run.complete(2, dropped={"clinic-b": "NO_REPLY: late"})
    seen = {site["name"]: site for site in look(run)["sites"]}
    steps = run.experiment.rounds.local_steps
    expected = epsilon([planned_events(run.experiment, 2 * steps)[0]], 1e-5)
    assert seen["clinic-b"]["epsilon_at_most"] == pytest.approx(expected)
    assert seen["hospital-a"]["epsilon_at_most"] == pytest.approx(expected)
    assert (seen["clinic-b"]["used"], seen["clinic-b"]["dropped"]) == (1, 1)


@pytest.mark.privacy
def test_spent_and_planned_epsilons_are_the_accountants(run):
    for number in (1, 2, 3):
        run.complete(number)
    seen = look(run)["privacy"]
    steps = run.experiment.rounds.local_steps
    for entry, spent, planned in zip(
        seen["epsilons"], planned_events(run.experiment, 3 * steps), planned_events(run.experiment), strict=True
    ):
        assert entry["spent"] == pytest.approx(epsilon([spent], 1e-5))
        assert entry["planned"] == pytest.approx(epsilon([planned], 1e-5))
    assert seen["unit"].startswith("one training example")


@pytest.mark.privacy
def test_what_is_spent_is_never_below_what_a_site_may_have_been_charged(run):
    """A first round that was abandoned: the sites may have released, though no round is completed."""
    dropped = {"clinic-b": "NO_REPLY: late"}
    run.folder.add_event(
        {"phase": "ROUND_ABANDONED", "round": 1, "attempt": 1, "dropped": dropped, "codes": {"clinic-b": "NO_REPLY"}}
    )
    seen = look(run)
    assert seen["round"] == 0
    charged = max(site["epsilon_at_most"] for site in seen["sites"])
    assert seen["privacy"]["epsilons"][0]["spent"] == charged > 0


def test_nothing_is_spent_before_the_first_round(run):
    assert {entry["spent"] for entry in look(run)["privacy"]["epsilons"]} == {0.0}
    assert look(run)["chart"]["svg"] == ""


def test_the_curves_are_those_of_the_rounds(run):
    for number in (1, 2, 3):
        run.complete(number)
    chart = look(run)["chart"]
    assert chart["sites"]["clinic-b"] == pytest.approx([0.6, 0.64, 0.68])
    assert chart["legend"][0]["last"] == pytest.approx(0.70)
    assert chart["svg"].startswith("<svg")


def test_looking_changes_nothing(run):
    run.complete(1)
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.suffix != ".sqlite-shm"}
    for _ in range(3):
        look(run)
        ask(run, "/api/runs/xrays-1")
    after = {path.name: path.read_bytes() for path in run.path.iterdir() if path.suffix != ".sqlite-shm"}
    assert before == after


def test_the_interface_only_reads(run):
    app = console_app(Watcher(run.path.parent, dict, run.path.parent / "server.log"))
    methods = {method for route in app.routes for method in getattr(route, "methods", ())}
    assert methods <= {"GET", "HEAD"}
    assert ask(run, "/docs").status_code == ask(run, "/openapi.json").status_code == 404


def test_runs_are_listed_and_unknown_ones_are_refused(run):
    assert ask(run, "/api/runs").json() == ["xrays-1"]
    assert ask(run, "/api/runs/xrays-1").json()["name"] == "xrays-1"
    for name in ("other", "..", "%2e%2e%2fxrays-1", "..%2f..%2fetc", ".hidden", "XRAYS"):
        for rest in ("", "/events"):
            answer = ask(run, f"/api/runs/{name}{rest}")
            assert answer.status_code == 404
    assert list_experiments(run.path / "nowhere") == []
    (run.path.parent / "deeper").mkdir()
    with pytest.raises(StateError, match="NO_RUN"):  # a name is a name, never a way out of the folder
        Watcher(run.path.parent / "deeper", dict, run.path / "log").look("../xrays-1")


def test_a_damaged_run_is_said(run):
    (run.path / "experiment.json").write_text("{")
    answer = ask(run, "/api/runs/xrays-1")
    assert answer.status_code == 500
    assert answer.json()["code"]


def test_a_server_that_does_not_answer_leaves_connections_unknown(run):
    def unreachable():
        raise DeploymentError(code="CONTROL_UNREACHABLE", message="no server")

    sites = ask(run, "/api/runs/xrays-1", unreachable).json()["sites"]
    assert {site["connection"] for site in sites} == {"unknown"}
    assert [site["name"] for site in sites] == list(SITES)


def test_many_pages_cost_one_look(run, monkeypatch):
    looks = []
    monkeypatch.setattr("dpfpl_server.watch.console.app.snapshot", lambda *a: looks.append(1) or {"name": "xrays-1"})
    watcher = Watcher(run.path.parent, dict, run.path.parent / "server.log")
    for _ in range(50):
        watcher.look("xrays-1")
    assert len(looks) == 1


def test_events_are_server_sent_and_only_what_changed(run):
    """Read from a stream as a browser would; the second state follows without another request."""
    run.complete(1)
    app = console_app(Watcher(run.path.parent, dict, run.path.parent / "server.log"))

    async def go():
        received, done = [], asyncio.Event()

        async def send(message):
            received.append(message)
            text = b"".join(m.get("body", b"") for m in received).decode()
            if text.count("event: state") == 1 and len(run.history) == 1:
                run.complete(2)
            if text.count("event: state") == 2:
                done.set()

        async def receive():
            await done.wait()
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "GET", "path": "/api/runs/xrays-1/events", "raw_path": b""}
        scope |= {"query_string": b""}
        scope |= {"headers": [], "http_version": "1.1", "scheme": "http", "root_path": "", "server": ("localhost", 80)}
        await asyncio.wait_for(app(scope | {"asgi": {"version": "3.0", "spec_version": "2.3"}}, receive, send), 20)
        return received

    received = asyncio.run(go())
    headers = dict(received[0]["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    text = b"".join(m.get("body", b"") for m in received).decode()
    states = [json.loads(part.split("data: ")[1]) for part in text.split("\n\n") if "event: state" in part]
    assert [state["round"] for state in states[:2]] == [1, 2]


def test_streams_are_few(run, monkeypatch):
    monkeypatch.setattr("dpfpl_server.watch.console.app.MAX_STREAMS", 0)
    assert ask(run, "/api/runs/xrays-1/events").status_code == 503
    assert MAX_STREAMS >= 10


def test_the_log_is_cut_to_its_last_lines_without_colours_and_web_requests(tmp_path):
    (tmp_path / "log").write_text("".join(f"line {n}\n" for n in range(10_000)))
    lines = tail(tmp_path / "log")
    assert (len(lines), lines[-1]) == (LOG_LINES, "line 9999")
    assert tail(tmp_path / "nowhere") == []
    (tmp_path / "odd").write_bytes(b"\xff\xfe broken\n")
    assert len(tail(tmp_path / "odd")) == 1
    (tmp_path / "log").write_text("\x1b[92mINFO \x1b[0m: started\n")
    assert tail(tmp_path / "log") == ["INFO : started"]
    (tmp_path / "log").write_text('INFO:     127.0.0.1:51 - "POST /v1/x HTTP/1.1" 200 OK\nINFO : "POST" began\n' * 90)
    assert tail(tmp_path / "log") == ['INFO : "POST" began'] * LOG_LINES


def test_a_finished_run_shows_the_accuracies_of_its_report(run):
    run.complete(1)
    before = {site["name"]: site["accuracy"] for site in look(run)["sites"]}
    final = dict.fromkeys(SITES[:-1], 0.125) | {SITES[-1]: None}
    result = {"rounds": [], "sites": [{"name": name, "local": value} for name, value in final.items()]}
    (run.path / "result.json").write_text(json.dumps(result))
    after = {site["name"]: site["accuracy"] for site in look(run)["sites"]}
    assert after == {name: 0.125 if value else before[name] for name, value in final.items()} != before


def test_NI8_a_finished_run_shows_scores_over_all_sites_with_their_intervals(run):
    assert look(run)["scores"] == []
    row = {"candidate": "prompt", "sites": 3, "right": 8.1, "of": 10.2, "value": 0.794, "interval": [0.6, 0.95]}
    hidden = {"candidate": "zero_shot", "sites": 3, "right": 1.0, "of": 0.2, "value": None, "interval": [0.0, 1.0]}
    (run.path / "result.json").write_text(json.dumps({"rounds": [], "sites": [], "scores": [hidden, row]}))
    assert look(run)["scores"] == [
        {"name": "the plain text", "value": None, "interval": [0.0, 1.0]},
        {"name": "each site's own prompt", "value": 0.794, "interval": [0.6, 0.95]},
    ]


def test_that_nothing_was_found_stays_on_the_page(run):
    assert look(run)["nothing_found"] == ""
    for number, warning in ((1, "No class stands out."), (2, "No class of any site stands out.")):
        run.folder.add_event({"phase": "EVIDENCE", "round": number, "text": warning, "warning": warning})
        run.complete(number)
    assert look(run)["nothing_found"] == "No class of any site stands out."
    run.folder.add_event({"phase": "EVIDENCE", "round": 3, "text": "1 of 2 classes", "warning": ""})
    assert look(run)["nothing_found"] == "", "a site that came later brought it"


def test_control_characters_are_not_passed_on(run):
    run.complete(1, dropped={"clinic-b": "\x1b[2J\u202e evil"})
    text = json.dumps(snapshot(run.folder, {}, ["\x1b[31m red"]), ensure_ascii=False)
    assert "\\u001b" not in text
    assert "\u202e" not in text


def test_nothing_of_the_page_comes_from_elsewhere(run):
    for path in STATIC:
        page = ask(run, path)
        assert page.status_code == 200
        assert "https://" not in page.text
        assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "")


def test_the_console_does_not_open_itself_to_a_network_without_a_token(tmp_path):
    with pytest.raises(ConfigError, match="TOKEN_NEEDED"):
        serve_console(tmp_path, tmp_path, "0.0.0.0", 0, None, print)


def test_a_program_that_is_gone_is_not_called_busy(run):
    run.train(1, waiting=["clinic-b"])
    run.close()
    seen = look(run)
    assert (seen["state"], seen["waiting_for"]) == ("CUT_OFF", [])
    assert {site["doing"] for site in seen["sites"]} == {""}
