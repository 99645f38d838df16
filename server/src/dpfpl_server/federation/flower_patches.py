"""Everything that the server changes in Flower 1.39's internals. Each patch: what, why, and what Flower should do.

:data:`PATCHES` names the functions of Flower that each one relies on; tests/server/test_flower_patches.py fails when
Flower changes one of them. The texts for Flower's issue tracker are in docs/upstream.md.
"""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc  # type: ignore[import-untyped]
from flwr.proto.fleet_pb2_grpc import add_FleetServicer_to_server
from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer
from flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor import NodeAuthServerInterceptor
from flwr.supercore.interceptors import (
    RpcErrorTranslationServerInterceptor,
    create_fleet_runtime_version_server_interceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, _parse_superlink_lifespan_config
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app

from dpfpl_common.patches import Patch
from dpfpl_server.control_secret import ShownSecret
from dpfpl_server.fleet_guard import MOST_BYTES, FleetGuard

__all__ = ["PATCHES", "guarded_superlink", "show_secret_everywhere"]

MOST_CALLS_IN_ALL = 1000
"""Flower's own number."""
FLEET_OPTIONS = (
    ("grpc.max_receive_message_length", MOST_BYTES),
    ("grpc.max_concurrent_streams", 128),  # of one connection
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.http2.bdp_probe", 0),  # else a window of many megabytes is open to whoever sends, read or not
    ("grpc.http2.lookahead_bytes", 256 << 10),  # what a stream may send unread
    ("grpc.experimental.tcp_max_read_chunk_size", 64 << 10),
    ("grpc.experimental.tcp_read_chunk_size", 8 << 10),
    ("grpc.experimental.tcp_max_read_buffer_size", 256 << 10),
    ("grpc.keepalive_time_ms", 210_000),  # from here on Flower's own, for clouds that forget idle connections
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 0),
)

PATCHES = (
    Patch(
        "guarded_superlink",
        {
            "flwr.superlink.cli.flower_superlink:SuperLinkLifespan": "",
            "flwr.superlink.cli.flower_superlink:_run_fleet_api_grpc_rere": "",
            "flwr.superlink.cli.flower_superlink:_run_superlink_http_api": "",
            "flwr.superlink.cli.flower_superlink:_parse_superlink_lifespan_config": "",
            "flwr.superlink.main:create_app": "",
            "flwr.supercore.grpc:generic_create_grpc_server": "",
            "flwr.server.superlink.fleet.grpc_rere.fleet_servicer:FleetServicer.__init__": "",
            "flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor:NodeAuthServerInterceptor": "",
        },
        "A key that nobody registered has 50 MB read, kept and logged; any key brings any other's node online; every "
        "local user may start runs and take their tasks.",
        "Fleet API: authenticate before the body is read",
    ),
    Patch(
        "show_secret_everywhere",
        {
            "flwr.supercore.protobuf.client:ProtobufClient.from_server_address": "",
            "flwr.superlink.grid.http_grid:HttpGrid._connect": "",
        },
        "The grid of a ServerApp has no setting for a further header, and the Runtime API no secret of its own.",
        "Control and Runtime API: a secret for local callers",
    ),
)


def guarded_superlink(arguments: Sequence[str]) -> tuple[Any, SuperLinkLifespanConfig]:
    """Flower's HTTP application, which starts the sites' port with :class:`FleetGuard` as it comes up.

    Args:
        arguments: of the command ``flower-superlink``.
    """
    sys.argv = ["flower-superlink", *arguments]
    config = _parse_superlink_lifespan_config()
    return create_app(config, _GuardedLifespan), config


class _GuardedLifespan(SuperLinkLifespan):
    """Flower's, but for how it opens the sites' port."""

    def _start_legacy_fleet_grpc_rere(self, fleet_address: str) -> None:
        """As Flower's, with our interceptor before all others, a receive limit and small windows."""
        guard = FleetGuard(self._is_registered, lambda text: print(text, file=sys.stderr, flush=True))
        interceptors: list[grpc.ServerInterceptor] = [
            guard,
            RpcErrorTranslationServerInterceptor(),
            NodeAuthServerInterceptor(self.state_factory),
            create_fleet_runtime_version_server_interceptor(),
        ]
        servicer = FleetServicer(
            state_factory=self.state_factory, objectstore_factory=self.objectstore_factory, enable_supernode_auth=True
        )
        server = grpc.server(
            ThreadPoolExecutor(max_workers=MOST_CALLS_IN_ALL, thread_name_prefix="fleet"),
            interceptors=interceptors,
            options=FLEET_OPTIONS,
            maximum_concurrent_rpcs=MOST_CALLS_IN_ALL,
        )
        add_FleetServicer_to_server(servicer, server)
        certificates = self.config.certificates
        assert certificates is not None  # superlink_command always names them
        authority, certificate, key = certificates
        server.add_secure_port(fleet_address, grpc.ssl_server_credentials(((key, certificate),), authority))
        server.start()
        self.grpc_servers.append(server)

    def _is_registered(self, key: bytes) -> bool:
        return self.state_factory.state().get_node_id_by_public_key(key) is not None


def show_secret_everywhere(secret: str) -> None:
    """Have every Runtime client that this process opens show the secret."""
    open_client: Callable[..., RuntimeHttpClient] = RuntimeHttpClient.from_server_address.__func__  # type: ignore[attr-defined]

    def from_server_address(cls: type[RuntimeHttpClient], *args: Any, interceptors: Any, **kwargs: Any) -> Any:
        return open_client(cls, *args, interceptors=[*interceptors, ShownSecret(secret)], **kwargs)

    RuntimeHttpClient.from_server_address = classmethod(from_server_address)  # type: ignore[method-assign, assignment]
