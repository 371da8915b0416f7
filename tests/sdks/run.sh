#!/usr/bin/env bash
# Real SDKs, unmodified and with a dummy secret, through a sidecar to a simulated WeChat whose tokens keep dying:
# the recipes of examples/sdks. Argument: the binary. Needs Python 3 (with venv or pip), Node 20, npm, and the
# registries these are set up with; and redis-server, for apps that have yet to move.
#
# WAYS chooses how the SDKs reach the sidecar, comma between: base_url, http_proxy, https_proxy, tls_listen (their
# process finds api.weixin.qq.com at the sidecar's TLS port) and hosts_file (the same for real, with a hosts file and port
# 443, in namespaces of its own; left out, and said so, where the machine does not allow them).
set -euo pipefail
cd "$(dirname "$0")/../.."

binary="$(realpath "${1:?give the binary to test}")"
recipes="examples/sdks"
work="$(mktemp -d)"
check=""
clean() {
  if [ -n "$check" ]; then
    # It ends what it started, then itself.
    kill -TERM "$check" 2> /dev/null && wait "$check" 2> /dev/null || true
  fi
  rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# No setting of whoever runs this may count.
for name in $(compgen -e | grep '^WECHAT_' || true); do unset "$name"; done

fail() {
  echo "FAILED: $*" >&2
  exit 1
}
for program in python3 node npm redis-server redis-cli; do
  command -v "$program" > /dev/null || fail "$program is missing; install it first"
done

# A Python with pip: the one there is, or one in a virtual environment, for which Debian wants a package of its own.
python=python3
if ! python3 -m pip --version > /dev/null 2>&1; then
  if ! python3 -c 'import ensurepip' 2> /dev/null && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "Python has neither pip nor venv; installing: python3-venv"
    apt-get update --quiet --quiet
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet --no-install-recommends python3-venv
  fi
  python3 -m venv "$work/venv" > "$work/venv.log" 2>&1 ||
    fail "Python has neither pip nor venv; install one: sudo apt-get install --yes python3-venv"
  python="$work/venv/bin/python"
fi

# python_packages NAME: what the recipe pins and nothing else, in a folder of its own.
python_packages() {
  "$python" -m pip install --quiet --no-deps --no-compile --disable-pip-version-check --root-user-action ignore \
    --target "$work/$1/packages" --requirement "$work/$1/requirements.txt" > "$work/$1.log" 2>&1
}

node_packages() {
  npm ci --prefix "$work/$1" --no-audit --no-fund --ignore-scripts > "$work/$1.log" 2>&1
}

for name in wechatpy werobot co-wechat-api node-easywechat; do
  cp -r "$recipes/$name" "$work/$name"
  if [ -f "$work/$name/requirements.txt" ]; then install=python_packages; else install=node_packages; fi
  "$install" "$name" || { cat "$work/$name.log" >&2; fail "the packages of $name cannot be installed"; }
  echo "installed the packages of $name"
done

# node-easywechat takes any axios 1; before 1.17 it asks an HTTP proxy for https://... in clear instead of CONNECT.
cp -r "$work/node-easywechat" "$work/node-easywechat-old-axios"
npm install --prefix "$work/node-easywechat-old-axios" --no-audit --no-fund --ignore-scripts --save-exact axios@1.7.9 \
  > "$work/axios.log" 2>&1 || { cat "$work/axios.log" >&2; fail "axios 1.7.9 cannot be installed"; }

# Apps that have yet to move: the same code with wechatpy as it is, and as it is going to be.
for name in legacy legacy-2; do cp -r tests/sdks/legacy "$work/$name"; done
mv "$work/legacy-2/requirements-2.txt" "$work/legacy-2/requirements.txt"
for name in legacy legacy-2; do
  python_packages "$name" || { cat "$work/$name.log" >&2; fail "the packages of $name cannot be installed"; }
  echo "installed the packages of $name"
done

code=0
# judge WAYS COMMAND...: runs the checks by a command.
judge() {
  "${@:2}" python3 -B tests/sdks/check.py "$binary" "$work" "$1" &
  check=$!
  wait "$check" || code=$?
  check=""
}

ways="${WAYS:-base_url,http_proxy,https_proxy,tls_listen,hosts_file}"
here="$(tr , '\n' <<< "$ways" | grep --invert-match '^hosts_file$' | paste --serial --delimiters=, || true)"
if [ -n "$here" ]; then judge "$here" env; fi
if [ "$here" != "$ways" ]; then
  echo "127.0.0.1 localhost api.weixin.qq.com" > "$work/hosts"
  alone=(unshare --net --mount)
  [ "$(id -u)" = 0 ] || alone+=(--user --map-root-user)
  if "${alone[@]}" mount --bind "$work/hosts" /etc/hosts 2> /dev/null; then
    judge hosts_file "${alone[@]}" bash -c 'mount --bind "$1" /etc/hosts && shift && exec "$@"' - "$work/hosts"
  else
    echo "skipped hosts_file: this machine does not allow network and mount namespaces"
  fi
fi
exit "$code"
