#!/bin/bash
# Makes sure that a Docker engine answers and that images can be built, on a Debian machine as root.
#
#     containers/engine.sh
#
# Installs docker.io and debootstrap if they are missing, and starts dockerd in the background if no engine answers.
# The engine keeps running after the script; its pid is in $FLUX_MEMORY_DOCKERD_PIDFILE (/tmp/dockerd.pid), its
# output beside it. An engine that already answers is not touched.
set -euo pipefail

pidfile=${FLUX_MEMORY_DOCKERD_PIDFILE:-/tmp/dockerd.pid}
log=${pidfile%.pid}.log

answers() {
    docker version >/dev/null 2>&1
}

fail() {
    echo "containers/engine.sh: $*" >&2
    exit 1
}

install_missing() {
    local missing=()
    command -v docker >/dev/null && { answers || command -v dockerd >/dev/null; } || missing+=(docker.io iptables cgroupfs-mount)
    command -v debootstrap >/dev/null || missing+=(debootstrap)
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || fail "missing: ${missing[*]}; run this as root, or install them"
    command -v apt-get >/dev/null || fail "missing: ${missing[*]}; no apt-get here, install them"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Succeeds once the engine answers; fails when it exits, or after a minute.
start() {
    rm -f "$pidfile"
    setsid dockerd --pidfile "$pidfile" "$@" </dev/null >"$log" 2>&1 &
    local engine=$!
    for _ in $(seq 300); do
        answers && return 0
        kill -0 "$engine" 2>/dev/null || return 1
        sleep 0.2
    done
    kill "$engine"
    return 1
}

install_missing
if ! answers; then
    [ "$(id -u)" = 0 ] || fail "no Docker engine answers; run this as root to start one"
    mountpoint -q /sys/fs/cgroup || cgroupfs-mount
    # Kernels without overlayfs use plain copies, which are slow but work.
    start || start --storage-driver=vfs || { tail -n 20 "$log" >&2; fail "dockerd does not start"; }
fi
echo "Docker $(docker version --format '{{.Server.Version}}') answers"
