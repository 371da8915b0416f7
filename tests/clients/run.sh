#!/usr/bin/env bash
# End-to-end checks of a built binary, with clients and upstreams that this project did not write.
#
#   tests/clients/run.sh target/release/wechat-sidecar [SUITE...]
#
# Suites: agreement curl python node storm outages leaks nginx; all of them without a name. Needs bash, curl, python3,
# openssl; uses node, nginx, and requests and httpx where they can be had, and says so where it goes without them.
# Everything listens on free ports of loopback, and the temporary directory goes away at the end.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../tally.sh"
shift
suites=${*:-agreement curl python node storm outages leaks nginx}

# A CA with a certificate for the upstreams that are not ours.
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

summary
