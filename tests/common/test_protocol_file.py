"""agent.proto: what it lists, that the generated files match it, and that nothing in it turns protection off."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dpfpl_common.wire import agent_pb2

COMMON = Path(__file__).parents[2] / "common"


def _generator():
    specification = importlib.util.spec_from_file_location("generate_protocol", COMMON / "generate_protocol.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_generating_again_gives_the_same_bytes(tmp_path):
    pytest.importorskip("grpc_tools")
    generator = _generator()
    subprocess.run([sys.executable, COMMON / "generate_protocol.py", tmp_path], check=True)
    for name in generator.GENERATED:
        assert (tmp_path / name).read_bytes() == (generator.SOURCES / name).read_bytes(), f"run {generator.__file__}"


def test_service_has_the_data_plane_only():
    service = agent_pb2.DESCRIPTOR.services_by_name["SiteAgent"]
    assert service.full_name == "dpfpl.v1.SiteAgent"
    assert [method.name for method in service.methods] == ["Train", "Evaluate", "AddUp"]
    assert list(agent_pb2.DESCRIPTOR.services_by_name) == ["SiteAgent"]


def test_fields_are_these_and_no_others():
    fields = {
        name: [field.name for field in message.fields]
        for name, message in agent_pb2.DESCRIPTOR.message_types_by_name.items()
    }
    assert fields == {
        "Array": ["rows", "columns", "data"],
        "TrainRequest": ["protocol_version", "experiment", "round", "global_context", "evaluate", "collect", "pool"],
        "EvaluateRequest": ["protocol_version", "experiment", "round", "global_context", "pool", "chosen"],
        "Reply": ["protocol_version", "reply", "refusal", "sum"],
        "SumRequest": [
            "protocol_version",
            "experiment",
            "sum",
            "attempt",
            "step",
            "content",
            "global_context",
            "pool",
        ],
        "SumReply": ["site", "content", "signature"],
        "SiteReply": ["site", "round", "update", "metrics", "scores", "signature", "evidence"],
        "Refusal": ["code", "rule", "message", "advice"],
    }


def test_there_is_no_switch_and_no_way_in_for_files():
    text = re.sub(r"//.*", "", (COMMON / "src/dpfpl_common/wire/agent.proto").read_text())
    for word in ("off", "debug", "raw", "seed", "path", "file", "url", "count", "personal", "Any", "Struct", "import"):
        assert not re.search(rf"\b\w*{word}\w*\b", text), word
