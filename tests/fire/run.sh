#!/usr/bin/env bash
# The built binary under fire: overload, soak, kill -9.
#
#   tests/fire/run.sh target/release/wechat-sidecar            what the test command runs: about three minutes
#   tests/fire/run.sh target/release/wechat-sidecar long       half a minute a phase, an hour of soak, a hundred kills
#   tests/fire/run.sh target/release/wechat-sidecar soak 35 4  35 minutes of soak with 4 apps, and nothing else
#
# The two last draw the soak into tests/fire/soak.svg, which the README shows.
set -u
here=$(cd "$(dirname "$0")" && pwd)
if [ $# -lt 1 ] || ! [ -x "$1" ]; then
    echo "usage: tests/fire/run.sh BINARY [long | soak MINUTES APPS] (whole ones), with a binary that can be run" >&2
    exit 64
fi
export E2E_BINARY E2E_TMP PYTHONDONTWRITEBYTECODE=1
E2E_BINARY=$(realpath "$1")
E2E_TMP=$(mktemp -d)
trap 'rm -rf "$E2E_TMP"' EXIT
mkdir "$E2E_TMP/logs" "$E2E_TMP/received"
python3 -c 'import secrets; print(secrets.token_hex(16))' > "$E2E_TMP/secret.txt"
for name in http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY; do unset "$name"; done
# A call takes two files; the limit of whoever runs this may be for a shell.
ulimit -n "$(ulimit -Hn)" 2> /dev/null || true

case "${2:-}" in
    long) overload=30 soak="60 $here/soak.svg" killed=100 patience=7200 ;;
    soak) overload='' soak="${3:-35} $here/soak.svg ${4:-12}" killed='' patience=$((${3:-35} * 60 + 300)) ;;
    *) overload=4 soak=2 killed=12 patience=300 ;;
esac
failed=0
run() {
    local name=$1 status
    shift
    echo "== $name"
    timeout "$patience" python3 "$here/$name.py" "$@" 2> "$E2E_TMP/logs/stderr" | tee "$E2E_TMP/said"
    status=${PIPESTATUS[0]}
    if [ "$status" -ne 0 ]; then
        echo "FAIL $name ended with status $status: $(tail -n 5 "$E2E_TMP/logs/stderr")"
        failed=1
    fi
    ! grep -q '^FAIL' "$E2E_TMP/said" || failed=1
    grep -q '^ok' "$E2E_TMP/said" || failed=1
}
[ -z "$overload" ] || run overload "$overload"
[ -z "$killed" ] || run killed "$killed"
# shellcheck disable=SC2086
run soak $soak
exit $failed
