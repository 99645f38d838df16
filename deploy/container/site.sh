#!/bin/sh
# docker compose exec client site ledger show: a subcommand of dpfpl-client, as the agent's user.
[ $# -gt 0 ] || set -- --help
exec python3 /opt/dpfpl/container/client.py "$@"
