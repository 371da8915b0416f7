#!/usr/bin/env bash
# End-to-end checks of a built binary, with clients and upstreams that this project did not write.
#
#   tests/clients/run.sh target/release/wechat-sidecar [SUITE...]
#
# Suites: agreement curl python node storm outages leaks nginx; all of them without a name. Needs bash, curl, python3,
# openssl; uses node, nginx, and requests and httpx where they can be had, and says so where it goes without them.
# Everything listens on free ports of loopback, and the temporary directory goes away at the end.
set -u
here=$(cd "$(dirname "$0")" && pwd)
if [ $# -lt 1 ] || ! [ -x "$1" ]; then
    echo "usage: tests/clients/run.sh BINARY [SUITE...], with a binary that can be run" >&2
    exit 64
fi
export E2E_BINARY E2E_TMP
E2E_BINARY=$(realpath "$1")
shift
suites=${*:-agreement curl python node storm outages leaks nginx}
E2E_TMP=$(mktemp -d)
# E2E_KEEP=1 keeps the logs of a run, to see why a check failed.
trap '[ -n "${E2E_KEEP:-}" ] && echo "kept: $E2E_TMP" || rm -rf "$E2E_TMP"' EXIT
mkdir "$E2E_TMP/logs" "$E2E_TMP/received"
tally=$E2E_TMP/tally
: >"$tally"
: >"$E2E_TMP/tokens.txt"
# A proxy of the machine's must not stand between a client and loopback.
declare -a proxies
for name in http_proxy https_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY; do
    [ -n "${!name:-}" ] && proxies+=("$name=${!name}")
    unset "$name"
done
export PYTHONDONTWRITEBYTECODE=1

# An AppSecret of this run, and a CA with a certificate for the upstreams that are not ours.
openssl rand -hex 16 >"$E2E_TMP/secret.txt"
{
    cd "$E2E_TMP" || exit 1
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=e2e-ca \
        -keyout ca.key -out ca.pem
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=e2e -keyout server.key -out server.csr
    printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n' >server.ext
    openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext \
        -out server.pem
    cd "$here" || exit 1
} >"$E2E_TMP/logs/openssl" 2>&1

# requests and httpx, in an environment of their own; E2E_VENV names one that has them already.
python=python3
if [ -n "${E2E_VENV:-}" ]; then
    python=$E2E_VENV/bin/python
elif python3 -m venv "$E2E_TMP/venv" >"$E2E_TMP/logs/venv" 2>&1 &&
    env "${proxies[@]}" "$E2E_TMP/venv/bin/pip" install -q --disable-pip-version-check requests httpx \
        >>"$E2E_TMP/logs/venv" 2>&1; then
    python=$E2E_TMP/venv/bin/python
else
    echo "skip requests and httpx: they cannot be installed here; the standard library's clients run"
fi

# Runs a suite and takes its lines; one that dies without a FAIL of its own is a failure, too.
run() {
    local name=$1 before after status
    shift
    echo "== $name"
    before=$(grep -c '^FAIL' "$tally")
    timeout 150 "$@" 2>"$E2E_TMP/logs/suite-stderr" | tee -a "$tally"
    status=${PIPESTATUS[0]}
    after=$(grep -c '^FAIL' "$tally")
    if [ "$status" -ne 0 ] && [ "$before" = "$after" ]; then
        echo "FAIL $name ended with status $status: $(tail -n 5 "$E2E_TMP/logs/suite-stderr")" | tee -a "$tally"
    fi
}


begun=$SECONDS
for suite in $suites; do
    case $suite in
    agreement) run agreement "$python" "$here/agreement.py" ;;
    curl)
        for upstream in sim own; do
            run "curl, $upstream upstream" "$python" "$here/rig.py" with $upstream --max-body 64MiB -- bash "$here/curl.sh"
        done
        ;;
    python)
        for upstream in sim own; do
            run "python, $upstream upstream" "$python" "$here/rig.py" with $upstream -- "$python" "$here/clients.py"
        done
        ;;
    node)
        if command -v node >/dev/null; then
            for upstream in sim own; do
                run "node, $upstream upstream" "$python" "$here/rig.py" with $upstream -- node "$here/clients.mjs"
            done
        else
            echo "skip node: it is not installed"
        fi
        ;;
    storm) run storm "$python" "$here/storm.py" ;;
    outages) run outages "$python" "$here/outages.py" ;;
    leaks) run leaks "$python" "$here/leaks.py" ;;
    nginx)
        if ! command -v nginx >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            { apt-get update && apt-get install -y --no-install-recommends nginx-light; } \
                >"$E2E_TMP/logs/apt" 2>&1
        fi
        if command -v nginx >/dev/null; then
            run nginx "$python" "$here/nginx.py"
        else
            echo "skip nginx: it is not installed and cannot be here"
        fi
        ;;
    *) echo "FAIL there is no suite $suite" | tee -a "$tally" ;;
    esac
done
# Last, over everything the suites left behind.
run secrecy "$python" "$here/secrecy.py"

passed=$(grep -c '^ok ' "$tally")
failed=$(grep -c '^FAIL' "$tally")
waiting=$(grep -c '^todo' "$tally")
[ "$waiting" -eq 0 ] || echo "$waiting known not to hold yet (todo)"
echo "$passed passed, $failed failed in $((SECONDS - begun)) s"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
