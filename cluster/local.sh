#!/bin/sh
# A Ray head on this machine that outlives a verb, with a dashboard and a token, on the loopback only; Ctrl-C ends it.
#   sh cluster/local.sh [flags of `ray start`, such as --num-cpus=8]
# Prometheus finds its nodes with  --config.file=/tmp/ray/session_latest/metrics/prometheus/prometheus.yml
# It prints what another shell needs to submit to it.
# A verb needs none of this: without --address it starts a Ray of its own and ends it.
set -eu
# On Linux Ray listens on every address even when told 127.0.0.1, unless its switch for desktops says that nobody joins.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
if [ -z "${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-}" ]; then
    ray get-auth-token --generate >/dev/null
    RAY_AUTH_TOKEN_PATH="$HOME/.ray/auth_token"
fi
port=8265
for flag in "$@"; do case "$flag" in --dashboard-port=*) port="${flag#*=}" ;; esac; done
echo "In another shell${RAY_AUTH_TOKEN:+, with the same RAY_AUTH_TOKEN}:"
echo "  export RAY_AUTH_MODE=token${RAY_AUTH_TOKEN_PATH:+ RAY_AUTH_TOKEN_PATH=\"$RAY_AUTH_TOKEN_PATH\"}"
echo "  deepshadows submit VERB ... --address http://127.0.0.1:$port"
exec ray start --head --block --node-ip-address=127.0.0.1 --dashboard-host=127.0.0.1 "$@"
