#!/usr/bin/env bash
# The examples, as far as they can be checked where no cluster, no Docker and no running systemd is at hand.
# Argument: the binary.
set -euo pipefail
cd "$(dirname "$0")/.."

binary="$(realpath "${1:?give the binary to test}")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

for folder in examples/*/; do
  [ -s "$folder/README.md" ] || fail "$folder has no README.md"
done

# Whichever Python has a YAML parser.
python=""
for candidate in python3 /usr/bin/python3; do
  if "$candidate" -c 'import yaml' 2> /dev/null; then python="$candidate" && break; fi
done
if [ -z "$python" ] && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  apt-get update --quiet --quiet
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet --no-install-recommends python3-yaml
  python=/usr/bin/python3
fi
[ -n "$python" ] || fail "no Python with a YAML parser; install one: sudo apt-get install --yes python3-yaml"

"$python" - << 'PY'
import glob, re, sys, yaml
files = glob.glob("examples/**/*.yaml", recursive=True)
assert len(files) >= 2, files
documents = {path: list(yaml.safe_load_all(open(path))) for path in files}

# What the container is asked to run must be what the Dockerfile makes.
docker = open("Dockerfile").read()
user = re.search(r"^USER (\d+):(\d+)$", docker, re.M)
entrypoint = re.search(r'^ENTRYPOINT \["(.*)"\]$', docker, re.M).group(1)
pod = documents["examples/kubernetes/deployment.yaml"][0]["spec"]["template"]["spec"]
sidecar = next(c for c in pod["initContainers"] if c["name"] == "wechat-sidecar")
assert sidecar["restartPolicy"] == "Always"
assert sidecar["startupProbe"]["exec"]["command"][0] == entrypoint
security = sidecar["securityContext"]
assert (security["runAsUser"], security["runAsGroup"]) == (int(user[1]), int(user[2])), security
assert pod["securityContext"]["fsGroup"] == int(user[2])
mounted = {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", [])}
assert "appsecret" not in mounted, "the app can read the AppSecret"
env = {e["name"]: e["value"] for e in sidecar["env"]}
item = pod["volumes"][0]["secret"]["items"][0]["path"]
assert env["WECHAT_SIDECAR_SECRET_FILE"] == f'{sidecar["volumeMounts"][0]["mountPath"]}/{item}'

services = documents["examples/compose/compose.yaml"][0]["services"]
assert services["app"]["network_mode"] == "service:wechat-sidecar"
assert "WECHAT_SIDECAR_LISTEN" not in services["wechat-sidecar"]["environment"], "loopback is enough"
assert not services["app"].get("secrets"), "the app can read the AppSecret"
print(f"{len(files)} YAML files say what they should")
PY

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
else
  echo "SKIPPED: systemd-analyze is not here, so the unit was not verified"
fi
