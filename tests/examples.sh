#!/usr/bin/env bash
# The examples, as far as they can be checked where no cluster, no Docker and no running systemd is at hand: by their
# schemas, by the tools that read them, and by the binary, which has to take their settings and to have what the
# dashboard shows. What is not here is said. Argument: the binary.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/sbin:/sbin"

source tests/lib.sh "$@"
export PYTHONDONTWRITEBYTECODE=1

for folder in examples/*/; do
  [ -s "$folder/README.md" ] || fail "$folder has no README.md"
done

# The schemas of Kubernetes and a YAML parser, as pinned. A Python with pip is the one there is, or a venv's.
python=python3
if ! python3 -m pip --version > /dev/null 2>&1; then
  python3 -m venv "$work/venv" > "$work/venv.log" 2>&1 ||
    fail "Python has neither pip nor venv; install one: sudo apt-get install --yes python3-venv"
  python="$work/venv/bin/python"
fi
"$python" -m pip install --quiet --no-deps --no-compile --disable-pip-version-check --root-user-action ignore \
  --target "$work/packages" --requirement tests/examples/requirements.txt > "$work/pip.log" 2>&1 ||
  { cat "$work/pip.log"; fail "the packages of tests/examples/requirements.txt cannot be installed"; }
export PYTHONPATH="$work/packages"

# A sidecar and a WeChat, for the manifests' settings and the dashboard's metrics.
"$binary" simulate --listen 127.0.0.1:0 --control-listen 127.0.0.1:0 > "$work/sim" 2> "$work/sim.log" &
pids+=("$!")
until_found "Point a sidecar" "$work/sim"
api="$(sed -n 's|^  API *http://\([^ ]*\).*|\1|p' "$work/sim")"

WECHAT_SIDECAR_SECRET="$secret" "$binary" run --appid "$appid" --upstream "http://$api" --log-format json \
  --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 2> "$work/run.log" &
pids+=("$!")
until_found '"listen":"' "$work/run.log"
listen="$(sed -n 's/.*"listen":"\([^"]*\)".*/\1/p' "$work/run.log")"
admin="$(sed -n 's/.*"admin":"\([^"]*\)".*/\1/p' "$work/run.log")"
"$binary" wait --admin-listen "$admin" --timeout 30s > /dev/null || fail "the sidecar has no token"

mkdir "$work/root"
"$python" tests/examples/manifests.py "$binary" "http://$api" "$work/root" || fail "the manifests"

if docker compose version > /dev/null 2>&1; then
  compose=(docker compose)
elif command -v docker-compose > /dev/null; then
  compose=(docker-compose)
else
  compose=()
  echo "SKIPPED: neither docker compose nor docker-compose is here, so compose.yaml was read by its own check only"
fi
if [ "${#compose[@]}" != 0 ]; then
  WECHAT_APPID="$appid" "${compose[@]}" --file examples/compose/compose.yaml --profile redis config > "$work/compose" 2>&1 ||
    { cat "$work/compose"; fail "Compose does not take compose.yaml"; }
  grep --quiet valkey "$work/compose" || fail "Compose does not see the profile's service"
  echo "Compose takes compose.yaml"
fi

if command -v systemd-analyze > /dev/null; then
  # Where the unit expects the binary, there is none on this machine.
  sed "s|/usr/local/bin/wechat-sidecar|$binary|" examples/systemd/wechat-sidecar.service > "$work/wechat-sidecar.service"
  systemd-analyze verify --man=no "$work/wechat-sidecar.service" > "$work/verify" 2>&1 || {
    cat "$work/verify"
    fail "systemd does not take the unit"
  }
  # It only warns of a directive it does not know.
  ! grep "$work/wechat-sidecar.service" "$work/verify" || fail "systemd does not understand all of the unit"
  echo "systemd takes the unit"
  # Since systemd 250 it judges a file, too. The README tells the score; other versions count a little differently.
  if systemd-analyze security --help | grep --quiet -- --offline; then
    systemd-analyze security --offline=yes --no-pager --threshold=20 "$work/wechat-sidecar.service" > "$work/security" 2>&1 ||
      { cat "$work/security"; fail "systemd thinks the unit exposed"; }
    tail -n 1 "$work/security"
  else
    echo "SKIPPED: this systemd judges no files, so the unit's exposure was not checked"
  fi
else
  echo "SKIPPED: systemd-analyze is not here, so the unit was not verified"
fi

# One call of each kind, so that what counts them has counted.
for path in get_api_domain_ip no-such-api; do
  curl --silent --show-error --noproxy '*' --max-time 30 "http://$listen/cgi-bin/$path" > /dev/null || fail "no answer"
done
"$python" tests/examples/dashboard.py "http://$admin/metrics" "$work/queries.json" || fail "the dashboard and the alerts"
if command -v promtool > /dev/null; then
  promtool check rules "$work/queries.json" > "$work/promtool" 2>&1 || { cat "$work/promtool"; fail "the dashboard's queries"; }
  promtool check rules examples/grafana/alerts.yaml > "$work/promtool" 2>&1 || { cat "$work/promtool"; fail "the alerts"; }
  promtool test rules tests/examples/alerts.test.yaml > "$work/promtool" 2>&1 ||
    { cat "$work/promtool"; fail "an alert fires when it should not, or does not when it should"; }
  echo "promtool takes the queries and the alerts, and each alert fires when it should"
else
  echo "SKIPPED: promtool is not here (Debian: prometheus), so queries and alerts were not parsed"
fi
