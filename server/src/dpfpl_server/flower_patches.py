"""Everything that the server changes in Flower 1.39's internals. Each patch: what, why, and what Flower should do.

:data:`PATCHES` names the functions of Flower that each one relies on; tests/common/test_flower_patches.py fails when
Flower changes one of them. The texts for Flower's issue tracker are in docs/reference/upstream.md.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from flwr.proto.fleet_pb2_grpc import add_FleetServicer_to_server
from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer
from flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor import NodeAuthServerInterceptor
from flwr.serverapp import Grid
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.interceptors import (
    RpcErrorTranslationServerInterceptor,
    create_fleet_runtime_version_server_interceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, _parse_superlink_lifespan_config
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app

from dpfpl_common.ops.patches import Patch

__all__ = [
    "MOST_BYTES",
    "PATCHES",
    "bear_broken_connections",
    "guarded_superlink",
    "pull_again_soon",
    "show_with_every_call",
    "whole_or_anew",
]

MOST_BYTES = 8 << 20
"""The longest message that the sites' port takes."""

MOST_CALLS_IN_ALL = 1000
"""Flower's own number."""
FLEET_OPTIONS = (
    ("grpc.max_receive_message_length", MOST_BYTES),
    ("grpc.max_concurrent_streams", 128),  # of one connection
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.http2.bdp_probe", 0),  # else every sender gets a window of many megabytes, read or not
    ("grpc.http2.lookahead_bytes", 256 << 10),  # what a stream may send unread
    ("grpc.experimental.tcp_max_read_chunk_size", 64 << 10),
    ("grpc.experimental.tcp_read_chunk_size", 8 << 10),
    ("grpc.experimental.tcp_max_read_buffer_size", 256 << 10),
    ("grpc.keepalive_time_ms", 210_000),  # from here on Flower's own, for clouds that forget idle connections
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 0),
)

_NODE_AUTH = "flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor"
PATCHES = (
    Patch(
        "guarded_superlink",
        {
            "flwr.superlink.cli.flower_superlink:SuperLinkLifespan": "2fb4c78af9a8",
            "flwr.superlink.cli.flower_superlink:_run_fleet_api_grpc_rere": "941cd68b2038",
            "flwr.superlink.cli.flower_superlink:_run_superlink_http_api": "100838fe6184",
            "flwr.superlink.cli.flower_superlink:_parse_superlink_lifespan_config": "aa9eaffe18d4",
            "flwr.superlink.main:create_app": "abdf57daccb7",
            "flwr.supercore.grpc:generic_create_grpc_server": "5cf51aeb93d9",
            "flwr.server.superlink.fleet.grpc_rere.fleet_servicer:FleetServicer.__init__": "79ba569591f7",
            f"{_NODE_AUTH}:NodeAuthServerInterceptor": "8b7f20e58c98",
        },
        "A key that nobody registered has 50 MB read, kept and logged; any key brings any other's node online; every "
        "local user may start runs and take their tasks.",
        "Fleet API: authenticate before the body is read",
    ),
    Patch(
        "whole_or_anew",
        {"flwr.supercore.state.alembic.utils:_run_migration_workflow": "23be84c75674"},
        "Killed while it makes its tables, the SuperLink leaves a database that no later start can use.",
        "SuperLink: a first start that is cut off",
    ),
    Patch(
        "show_with_every_call",
        {
            "flwr.supercore.protobuf.client:ProtobufClient.from_server_address": "786f4a7b7492",
            "flwr.superlink.grid.http_grid:HttpGrid._connect": "4e5c90975f83",
        },
        "The grid of a ServerApp has no setting for a further header, and the Runtime API no secret of its own.",
        "Control and Runtime API: a secret for local callers",
    ),
    Patch(
        "pull_again_soon",
        {"flwr.supercore.inflatable.inflatable_utils:pull_objects": "31bb2de46b45"},
        "A part of a reply that its site is still pushing is asked for again after 1 s, and the rest of a reply whose "
        "sender stopped is waited for for minutes, with all other sites' replies behind it.",
        "Grid: settings for waiting for parts of a message",
    ),
    Patch(
        "bear_broken_connections",
        {
            "flwr.supercore.retry.http_retry:make_simple_http_retry_invoker": "a49d1c32d6c6",
            "flwr.superlink.grid.http_grid:HttpGrid.__init__": "8e9776be6069",
        },
        "Any error with SSL in its text is given up at once, as if a certificate were wrong, and the run fails.",
        "Grid: a connection closed within TLS is no wrong certificate",
    ),
)


IsRegistered = Callable[[bytes], bool]


def guarded_superlink(
    arguments: Sequence[str], guard: Callable[[IsRegistered], grpc.ServerInterceptor]
) -> tuple[Any, SuperLinkLifespanConfig]:
    """Flower's HTTP application, which opens the sites' port with an interceptor of ours as it comes up.

    Args:
        arguments: of the command ``flower-superlink``.
        guard: makes the outermost interceptor, from a function that tells whether a key is registered.
    """

    class Lifespan(_GuardedLifespan):
        make_guard = staticmethod(guard)

    sys.argv = ["flower-superlink", *arguments]
    config = _parse_superlink_lifespan_config()
    with whole_or_anew(Path(config.database)):
        application = create_app(config, Lifespan)
    return application, config


@contextmanager
def whole_or_anew(database: Path) -> Iterator[None]:
    """While Flower makes its tables: a database whose making was cut off is made again, as nothing is in it yet.

    Flower makes one table after another in the final file. After a kill meanwhile, every later start fails with "table
    task already exists".
    """
    mark = database.with_name(f"{database.name}-unfinished")
    if mark.exists() or not database.exists():
        mark.touch()
        for end in ("", "-wal", "-shm", "-journal"):
            database.with_name(f"{database.name}{end}").unlink(missing_ok=True)
    yield
    mark.unlink(missing_ok=True)


class _GuardedLifespan(SuperLinkLifespan):
    """Flower's, but for how it opens the sites' port."""

    make_guard: Callable[[IsRegistered], grpc.ServerInterceptor]

    def _start_legacy_fleet_grpc_rere(self, fleet_address: str) -> None:
        """As Flower's, with our interceptor before all others, a receive limit and small windows."""
        interceptors: list[grpc.ServerInterceptor] = [
            self.make_guard(self._is_registered),
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


def show_with_every_call(interceptor: Any) -> None:
    """Have every Runtime client that this process opens use one more of Flower's HTTP interceptors."""
    open_client: Any = RuntimeHttpClient.from_server_address.__func__  # type: ignore[attr-defined]

    def from_server_address(cls: type[RuntimeHttpClient], /, *args: Any, interceptors: Any, **kwargs: Any) -> Any:
        return open_client(cls, *args, interceptors=[*interceptors, interceptor], **kwargs)

    RuntimeHttpClient.from_server_address = classmethod(from_server_address)  # type: ignore[method-assign, assignment]


PULL_AGAIN_SECONDS = 0.05
PULL_AGAIN_AT_LEAST_SECONDS = 0.5
REST_OF_A_REPLY_SECONDS = 15.0
"""How long the other parts of a reply may take whose first one is here: a mebibyte at a megabit per second."""
_BROKEN = ("unexpected_eof", "eof occurred", "connection reset", "broken pipe")


def pull_again_soon(deadline_s: float) -> None:
    """Have this process ask again soon for a part of a message that its sender is still pushing, and not forever.

    Flower waits a second, so a round would last that much longer whenever a look falls into a site's push. And for the
    rest of a reply whose sender stopped in the middle it waits for minutes, with all other sites' replies behind it.
    """
    defaults: dict[str, Any] = inflatable_utils.pull_objects.__kwdefaults__ or {}
    defaults["initial_backoff"] = PULL_AGAIN_SECONDS
    defaults["backoff_cap"] = PULL_AGAIN_AT_LEAST_SECONDS
    defaults["max_time"] = min(REST_OF_A_REPLY_SECONDS, deadline_s / 4)


def bear_broken_connections(grid: Grid) -> None:
    """Have the grid try again where a connection to the SuperLink was closed within TLS, as it does where it was reset.

    Flower gives up at any error with "SSL" in its text, as if a certificate were wrong, and the run fails: seen once in
    387 runs on a busy machine. Errors of certificates are given up as before. Other grids are left as they are.
    """
    invoker = getattr(grid, "_retry_invoker", None)
    gives_up = getattr(invoker, "should_giveup", None)
    if invoker is None or gives_up is None:
        return

    def really_gives_up(error: Exception) -> bool:
        text = str(error).lower()
        return bool(gives_up(error)) and ("certificate" in text or not any(sign in text for sign in _BROKEN))

    invoker.should_giveup = really_gives_up
