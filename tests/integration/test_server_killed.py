"""L1, L2: kill -9 of the server's processes in every phase; the experiment ends as if nothing had happened.

Sites are seeded and their data public, so "as if" is exact: the same final shared prompt, bit for bit, and each site
charged once for each round and once for its scores.
"""

from collections.abc import Iterator

import numpy as np
import pytest
from killed_federation import ROUNDS, SITES, Federation, use_killing_app

from dpfpl_client.agent.ledger.book import SCORES
from dpfpl_common.errors import RoundError
from dpfpl_server.runs.supervise import Limits

pytestmark = [pytest.mark.processes, pytest.mark.slow]

EVALUATION = ROUNDS
SERVERAPP = [("before checkpoint", 2), ("after checkpoint", 2), ("TRAINING", 3)]
SERVERAPP_LONG = [
    ("TRAINING", 1),
    ("ROUND_DONE", 1),
    ("before checkpoint", ROUNDS),
    ("after checkpoint", ROUNDS),
    ("EVALUATING", EVALUATION),
    ("FINISHED", EVALUATION),
]
SUPERLINK = [("TRAINING", 2)]
SUPERLINK_LONG = [
    ("TRAINING", 1),
    ("before checkpoint", 2),
    ("after checkpoint", 3),
    ("EVALUATING", EVALUATION),
]


def moments(quick: list[tuple[str, int]], long: list[tuple[str, int]]) -> list[object]:
    return [
        *(pytest.param(*moment, id=f"{moment[0]} {moment[1]}") for moment in quick),
        *(pytest.param(*moment, id=f"{moment[0]} {moment[1]}", marks=pytest.mark.long) for moment in long),
    ]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    federation = Federation(tmp_path_factory.mktemp("killed"))
    with federation.group:
        federation.start()
        federation.run("whole")
        assert np.abs(federation.context("whole")).max() > 1e-2, "nothing was learned: nothing could be compared"
        yield federation


def as_if_nothing_had_happened(federation: Federation, name: str) -> None:
    np.testing.assert_array_equal(federation.context(name), federation.context("whole"))
    paid = ((*range(1, ROUNDS + 1), SCORES), ROUNDS + 1)
    assert federation.charges()[name] == {paid}, "both sites were charged once for each round and for the scores"
    result = federation.folder(name).read_json("result.json")
    assert [entry["round"] for entry in result["rounds"]] == list(range(1, ROUNDS + 1))
    assert [entry["sites"] for entry in result["rounds"]] == [list(SITES)] * ROUNDS
    whole = federation.folder("whole").read_json("result.json")
    assert result["accuracy"] == whole["accuracy"]
    assert result["privacy"] == whole["privacy"]


@pytest.mark.parametrize(("moment", "number"), moments(SERVERAPP, SERVERAPP_LONG))
def test_L2_the_serverapp_is_killed_and_the_run_resumed(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, moment: str, number: int
) -> None:
    use_killing_app(monkeypatch)
    name = f"app-{moment}-{number}".lower().replace(" ", "-").replace("_", "-")
    federation.kill_at(name, moment, number)
    federation.run(name)
    assert not (federation.folder(name).path / "kill.json").exists(), "it was never killed"
    outcomes = [attempt.outcome for attempt in federation.folder(name).store.attempts()]
    assert outcomes[-1] == "completed"
    assert outcomes[:-1] in (["crashed"], [])  # killed after the last word: nothing is left to do
    as_if_nothing_had_happened(federation, name)


@pytest.mark.parametrize(("moment", "number"), moments(SUPERLINK, SUPERLINK_LONG))
def test_L1_the_superlink_is_killed_restarted_and_the_run_goes_on(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, moment: str, number: int
) -> None:
    use_killing_app(monkeypatch)
    name = f"link-{moment}-{number}".lower().replace(" ", "-").replace("_", "-")
    federation.kill_at(name, moment, number, federation.superlink_pids())
    restarter = federation.restart_superlink_when_dead()
    federation.run(name)
    restarter.join()
    outcomes = [attempt.outcome for attempt in federation.folder(name).store.attempts()]
    assert outcomes[-1] == "completed"  # the ServerApp bears a SuperLink that is away for a while
    as_if_nothing_had_happened(federation, name)


def test_L1_resumed_by_hand(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without supervision the run ends failed; ``resume`` continues from the last committed round."""
    use_killing_app(monkeypatch)
    name = "by-hand"
    federation.kill_at(name, "TRAINING", 3)
    with pytest.raises(RoundError) as caught:
        federation.run(name, Limits(restarts=0))
    assert caught.value.code == "RUN_FAILED"
    checkpoint = federation.folder(name).load_checkpoint()
    assert checkpoint is not None
    assert checkpoint.round == 2
    federation.run(name)
    as_if_nothing_had_happened(federation, name)
