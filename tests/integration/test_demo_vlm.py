"""make demo-vlm: real processes, three sites that ask questions, epsilon 8."""

import json
import subprocess
import sys

import pytest


@pytest.mark.long
@pytest.mark.processes
def test_personalised_answers_beat_the_model_without_a_prompt_at_epsilon_8(tmp_path):
    program = "from dpfpl_bench.cli import main; main()"
    command = [sys.executable, "-c", program, "demo-vlm", "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["transport"] == "grpc+tls"
    assert len(result["sites"]) == 3
    assert result["accuracy"]["local"] > result["floors"]["zero_shot"]["local"] + 0.1
    (recipient,) = [e for e in result["privacy"]["epsilons"] if e["adversary"] == "prompt_recipient"]
    assert recipient["epsilon"] <= 8.0
    for floor in ("zero_shot", "global_only", "local_only", "centralised"):
        assert result["floors"][floor]["local"] is not None
    for site in result["sites"]:
        assert site["local"] > site["before"]
