#!/usr/bin/env bash
# Many replicas, one token: fleets of a built binary on one Redis, on one central token server, and on nothing at all.
#
#   tests/fleet/run.sh target/release/wechat-sidecar [SUITE...]
#
# Suites: many faults central; all of them without a name. Needs bash, python3, openssl, redis-server and faketime.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../tally.sh"
shift
# Fleets are slow on a busy machine, and nothing here is judged by how fast it was.
E2E_LIMIT=600
for suite in ${*:-many faults central}; do
    case $suite in
    many | faults | central) run "$suite" python3 "$here/$suite.py" ;;
    *) echo "FAIL there is no suite $suite" | tee -a "$tally" ;;
    esac
done
# Last, over everything the suites left behind.
run secrecy python3 "$here/../clients/secrecy.py"
summary
