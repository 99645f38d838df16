"""Generate ``agent_pb2.py`` and ``agent_pb2.pyi`` from ``agent.proto``.

Run it after an edit of the .proto file: ``python common/generate_protocol.py``. The results are committed, so that an
installation needs no compiler; a test fails while they do not match. Needs the package grpcio-tools.
"""

import sys
from pathlib import Path

from grpc_tools import protoc

__all__ = ["GENERATED", "SOURCES", "generate"]

SOURCES = Path(__file__).resolve().parent / "src"
GENERATED = ("dpfpl_common/wire/agent_pb2.py", "dpfpl_common/wire/agent_pb2.pyi")


def generate(folder: Path) -> None:
    """Write the generated files below ``folder``.

    The source is named relative to ``src``, which makes protoc write the absolute import
    ``from dpfpl_common.wire import agent_pb2``.
    """
    outputs = [f"--{kind}={folder}" for kind in ("python_out", "pyi_out")]
    status = protoc.main(["protoc", f"-I{SOURCES}", *outputs, "dpfpl_common/wire/agent.proto"])
    if status != 0:
        raise SystemExit(f"protoc failed with status {status}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCES)
