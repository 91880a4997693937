#!/bin/sh
# A Ray head on this machine that outlives a verb, with a dashboard and a token, on the loopback only; Ctrl-C ends it.
#   sh cluster/local.sh [flags of `ray start`, such as --num-cpus=8]
# Prometheus finds its nodes with  --config.file=/tmp/ray/session_latest/metrics/prometheus/prometheus.yml
# Then, elsewhere: deepshadows submit classify ... --address http://127.0.0.1:8265
# A verb needs none of this: without --address it starts a Ray of its own and ends it.
set -eu
# On Linux Ray listens on every address even when told 127.0.0.1, unless its switch for desktops says that nobody joins.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
[ -n "${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-}" ] || ray get-auth-token --generate >/dev/null
exec ray start --head --block --node-ip-address=127.0.0.1 --dashboard-host=127.0.0.1 "$@"
