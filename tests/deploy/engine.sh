# shellcheck shell=bash disable=SC2154 # namesrv and hold belong to the tests
# What the tests with a real Docker Engine have in common; sourced by them, in the project's directory. They need root and Debian.
# The engine and all that runs in it are in namespaces of their own, so that ports and rules of the machine stay as they are
# and nothing outlives the test. No registry of images is asked: deploy/docker/base-image makes what the Dockerfile builds in.
# That and the image built last are kept in target/compose, so that a second run builds only what changed.
#
# A test calls `prepare`, then itself again with `isolated`; there `start_engine` and `build_image`. It may define `show` (said when
# it fails) and `remove_all`. At its end stands `N passed, 0 failed`.

work=$PWD/target/compose
image_max_bytes=30000000
passed=0
started=$SECONDS

# ---- With the machine's network: all that has to be fetched.

prepare() {
    local pair missing=()
    [[ $(id -u) == 0 ]] || { echo "$0 starts a Docker Engine: run it as root" >&2; exit 1; }
    mkdir -p "$work"
    for pair in dockerd:docker.io docker-compose:docker-compose debootstrap:debootstrap iptables:iptables ip:iproute2; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    if ((${#missing[@]} > 0)); then
        apt-get update -q
        # A service that apt would start is not wanted: the test starts an engine of its own.
        DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -q --no-install-recommends "${missing[@]}"
    fi
    deploy/docker/base-image --files
    tests/clients/setup python
}

# isolated SCRIPT: becomes it, with the argument --inside, as process 1 of namespaces of its own; when it ends, all ends.
isolated() { exec unshare --net --mount --pid --fork --kill-child --mount-proc "$1" --inside; }

# ---- In namespaces of their own.

ok() {
    passed=$((passed + 1))
    echo "ok $passed - $* ($((SECONDS - started)) s)"
}

die() {
    echo "not ok $((passed + 1)) - $*" >&2
    exit 1
}

# until_true SECONDS WHAT COMMAND...: repeats the command until it is true.
until_true() {
    local deadline=$((SECONDS + $1)) what=$2
    until "${@:3}"; do
        ((SECONDS < deadline)) || die "$what: not within $1 s"
        sleep 0.3
    done
}

show() { :; }
remove_all() { :; }

finish() {
    local status=$?
    trap - EXIT
    set +e
    if ((status != 0)); then
        docker ps --all
        show
        tail -n 5 "$run"/*.log "$run"/*.events 2>/dev/null
    fi
    remove_all
    kill "$engine" && wait "$engine"
    rm -rf "$run"
    echo "$passed passed, $((status != 0)) failed"
    exit "$status"
}

docker_answers() { docker version >/dev/null 2>&1; }

start_engine() {
    run=$(mktemp -d /tmp/karman-deploy.XXXXXX)
    ip link set lo up
    export DOCKER_HOST=unix://$run/docker.sock COMPOSE_PROJECT_NAME=karman
    dockerd --host "$DOCKER_HOST" --data-root "$work/docker" --exec-root "$run/exec" --pidfile "$run/pid" \
        >"$run/dockerd.log" 2>&1 &
    engine=$!
    trap finish EXIT
    trap 'exit 130' INT TERM
    until_true 30 "the engine starts" docker_answers
    # What a run left that was ended by force.
    remove_all
}

build_image() {
    local bytes container
    deploy/docker/base-image
    make image >"$run/build.log" 2>&1 || { tail -n 40 "$run/build.log" && die "the image is not built"; }
    # Stages of earlier builds have no name; those of this one save the next run the work.
    docker image prune --force --filter until=24h >/dev/null
    bytes=$(docker image inspect --format '{{.Size}}' karman:local)
    ((bytes <= image_max_bytes)) || die "the image has $bytes bytes"
    ok "the image is built: $bytes bytes"
    container=$(docker create karman:local)
    docker cp "$container:/usr/local/bin/karman" "$run/karman" >/dev/null
    docker rm "$container" >/dev/null
}

# The program of the image: it is static, so the host runs it, too.
karman() { timeout 30 "$run/karman" --endpoint "$namesrv" "$@"; }

# client EVENTS SCENARIO OPTION...: becomes the official client. It works on while the pipe that is its stdin is open: `hold`.
client() {
    exec timeout 300 target/clients/python/bin/python tests/clients/python/driver.py "${@:2}" \
        <&"$hold" >"$run/$1.events" 2>>"$run/clients.log"
}

# ids EVENT EVENTS: the messages of which the client reported the event.
ids() { sed -n "s/.*\"event\": \"$1\".*\"id\": \"\([^\"]*\)\".*/\1/p" "$run/$2.events" | sort -u; }
count() { ids "$@" | wc -l; }
at_least() { (($(count "$2" "$3") >= $1)); }
# The answer to an acknowledgement may be lost with the broker that has recorded it: what was received was delivered.
missing() { comm -23 <(ids sent "$1") <(ids message "$2"); }
nothing_missing() { [[ -z $(missing "$@") ]]; }
