# What the suites in Python and Node have in common; to be sourced with the binary as the first argument. Gives E2E_BINARY,
# E2E_TMP (logs/ takes what processes write, received/ what clients got, tokens.txt every token that an upstream issued)
# with an AppSecret of this run in secret.txt, `run NAME COMMAND...`, and `summary`, which every run.sh ends with.
# A check prints one line that begins with `ok` or `FAIL`, or with `todo` where it is known not to hold yet.
# shellcheck shell=bash
set -u
if [ $# -lt 1 ] || ! [ -x "$1" ]; then
    echo "usage: $0 BINARY [SUITE...], with a binary that can be run" >&2
    exit 64
fi
export E2E_BINARY E2E_TMP PYTHONDONTWRITEBYTECODE=1
E2E_BINARY=$(realpath "$1")
E2E_TMP=$(mktemp -d)
# E2E_KEEP=1 keeps the logs of a run, to see why a check failed.
trap '[ -n "${E2E_KEEP:-}" ] && echo "kept: $E2E_TMP" || rm -rf "$E2E_TMP"' EXIT
mkdir "$E2E_TMP/logs" "$E2E_TMP/received"
tally=$E2E_TMP/tally
: >"$tally"
: >"$E2E_TMP/tokens.txt"
openssl rand -hex 16 >"$E2E_TMP/secret.txt"
# A proxy of the machine's must not stand between a client and loopback.
declare -a proxies
for name in http_proxy https_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY; do
    [ -n "${!name:-}" ] && proxies+=("$name=${!name}")
    unset "$name"
done
begun=$SECONDS

# Runs a suite and takes its lines; one that dies without a FAIL of its own is a failure, too.
run() {
    local name=$1 before after status
    shift
    echo "== $name"
    before=$(grep -c '^FAIL' "$tally")
    timeout "${E2E_LIMIT:-150}" "$@" 2>"$E2E_TMP/logs/suite-stderr" | tee -a "$tally"
    status=${PIPESTATUS[0]}
    after=$(grep -c '^FAIL' "$tally")
    if [ "$status" -ne 0 ] && [ "$before" = "$after" ]; then
        echo "FAIL $name ended with status $status: $(tail -n 5 "$E2E_TMP/logs/suite-stderr")" | tee -a "$tally"
    fi
}

# How many passed and failed; fails when one did, or none ran.
summary() {
    local passed failed waiting
    passed=$(grep -c '^ok ' "$tally")
    failed=$(grep -c '^FAIL' "$tally")
    waiting=$(grep -c '^todo' "$tally")
    [ "$waiting" -eq 0 ] || echo "$waiting known not to hold yet (todo)"
    echo "$passed passed, $failed failed in $((SECONDS - begun)) s"
    [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
}
