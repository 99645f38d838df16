"""The only module that talks to a SuperLink's Control API (HTTPS on loopback): nodes and runs.

Flower's own client classes are used instead of the ``flwr`` command because the command refuses to submit a bundle
where ``dpfpl_client`` is not installed, does not say which node has which name or key, and takes a second per call.
"""

import hashlib
import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from cryptography.hazmat.primitives import serialization
from flwr.cli.build import build_fab_from_files
from flwr.cli.cli_client_interceptor import CliClientHttpInterceptor
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from dpfpl_common.errors import DeploymentError
from dpfpl_common.ops.telemetry import silence_telemetry
from dpfpl_common.secure.enrolment import PublicKey, public_line
from dpfpl_server.sites.control_secret import ShownSecret

__all__ = ["Control", "Node", "RunStatus", "bundle_files"]

silence_telemetry()  # also corrects a Flower that was imported a few lines above


def bundle_files() -> dict[str, bytes]:
    """The Flower app bundle that a run is submitted with: one file, which names the installed apps.

    ``deploy/bundle`` in the repository is another one, for Flower's simulation.
    """
    return {"pyproject.toml": resources.files("dpfpl_server.sites").joinpath("bundle/pyproject.toml").read_bytes()}


@dataclass(frozen=True)
class Node:
    """A site as Flower knows it; ``public_key`` is an OpenSSH line, ``status`` registered, online or offline."""

    node_id: int
    name: str
    public_key: str
    status: str


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands: pending, starting, running or finished, and then completed, failed or stopped."""

    run_id: int
    status: str
    sub_status: str
    details: str

    @property
    def finished(self) -> bool:
        """Whether the run is over, for good or ill."""
        return self.status == "finished"

    @property
    def completed(self) -> bool:
        """Whether the run is over and its ServerApp ended without an error."""
        return self.finished and self.sub_status == "completed"


class Control:
    """A connection to one SuperLink; use it as a context manager.

    Args:
        address: host and port of the Control API.
        ca_certificate: the federation's own authority; nothing else is trusted.
        secret: of the server's folder.
    """

    def __init__(self, address: str, ca_certificate: Path, secret: str) -> None:
        self.address = address
        try:
            self._client = ControlHttpClient.from_server_address(
                server_address=address,
                insecure=False,
                root_certificates=ca_certificate.read_bytes(),
                interceptors=[
                    CliClientHttpInterceptor(),
                    RuntimeVersionHttpInterceptor(component_name="flwr CLI"),
                    ShownSecret(secret),
                ],
            )
        except (OSError, ssl.SSLError) as error:
            raise DeploymentError(
                code="CA_UNREADABLE",
                message=f"{ca_certificate} cannot be used: {error}.",
                advice="Run dpfpl-server provision first, or restore the file.",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def nodes(self) -> list[Node]:
        """Return all nodes that are registered."""
        response = self._call(self._client.ListNodes, ListNodesRequest())
        return [
            Node(info.node_id, info.name, _openssh(info.public_key), info.status)
            for info in response.nodes_info
            if info.status != "unregistered"
        ]

    def register(self, name: str, public_key: str) -> int:
        """Register a node by its OpenSSH public key and return its node id."""
        pem = serialization.load_ssh_public_key(public_key.encode()).public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return int(self._call(self._client.RegisterNode, RegisterNodeRequest(public_key=pem, name=name)).node_id)

    def unregister(self, node_id: int) -> None:
        """Make a node's key worthless."""
        self._call(self._client.UnregisterNode, UnregisterNodeRequest(node_id=node_id))

    def start_run(self, bundle: Mapping[str, bytes | Path], run_config: Mapping[str, str | int | float | bool]) -> int:
        """Submit a bundle, given as its files by name, and return the run's id."""
        content, _ = build_fab_from_files(bundle)
        request = StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {})),
            override_config=user_config_to_proto(dict(run_config)),
        )
        return int(self._call(self._client.StartRun, request).run_id)

    def run(self, run_id: int) -> RunStatus:
        """Return where a run stands."""
        found = self._call(self._client.ListRuns, ListRunsRequest(run_id=run_id)).run_dict[run_id]
        return RunStatus(run_id, found.status.status, found.status.sub_status, found.status.details)

    def stop_run(self, run_id: int) -> bool:
        """Stop a run; tells whether it could be stopped."""
        return bool(self._call(self._client.StopRun, StopRunRequest(run_id=run_id)).success)

    def log(self, run_id: int) -> Iterator[str]:
        """Yield what a run's ServerApp has logged, and what it goes on to log until the run ends."""
        try:
            for part in self._client.StreamLogs(StreamLogsRequest(run_id=run_id, after_timestamp=0.0)):
                yield part.log_output
        except httpx.HTTPError as error:
            raise self._translated(error) from error

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request)
        except httpx.HTTPError as error:
            raise self._translated(error) from error

    def _translated(self, error: httpx.HTTPError) -> DeploymentError:
        if isinstance(error, httpx.HTTPStatusError):
            return DeploymentError(
                code="CONTROL_REFUSED",
                message=f"The SuperLink refused: {_detail(error.response)}.",
                advice="The SuperLink's log has the details.",
            )
        return DeploymentError(
            code="CONTROL_UNREACHABLE",
            message=f"No SuperLink of this federation answers at {self.address} ({type(error).__name__}: {error}).",
            advice="Start it with dpfpl-server start, and use the folder it was started with.",
        )


def _detail(response: httpx.Response) -> str:
    try:
        return str(json.loads(response.text)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {response.status_code}"


def _openssh(pem: bytes) -> str:
    if not pem:
        return ""
    key = serialization.load_pem_public_key(pem)
    assert isinstance(key, PublicKey)  # register sends no other
    return public_line(key)
