"""make demo-vlm: real processes, sites that share most of a style, epsilon 2."""

import json
import subprocess
import sys

import pytest


@pytest.mark.long
@pytest.mark.processes
def test_federated_answers_are_far_ahead_of_each_site_alone_at_epsilon_2(tmp_path):
    program = "from dpfpl_bench.cli import main; main()"
    command = [sys.executable, "-c", program, "demo-vlm", "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["transport"] == "grpc+tls"
    assert len(result["sites"]) == 12
    assert result["accuracy"]["local"] > result["floors"]["zero_shot"]["local"] + 0.4
    assert result["accuracy"]["local"] > result["floors"]["local_only"]["local"] + 0.15
    (recipient,) = [e for e in result["privacy"]["epsilons"] if e["adversary"] == "prompt_recipient"]
    assert recipient["epsilon"] <= 2.0
    for floor in ("zero_shot", "global_only", "local_only", "local_only_no_noise", "centralised"):
        assert result["floors"][floor]["local"] is not None
    for site in result["sites"]:
        assert site["local"] > site["before"]
