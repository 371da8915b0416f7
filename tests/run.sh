#!/usr/bin/env bash
# Runs every check there is: `bash tests/run.sh`, from anywhere. CI runs this and nothing else that matters.
#
# Needs the Rust toolchain with rustfmt and clippy, and on Debian installs the rest (a C compiler, curl, Python, Node,
# nginx, Redis, Chromium) if it is missing and you are root. Nothing here asks the network, except cargo, pip, npm and apt
# for packages.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/sbin:/sbin"

began=$SECONDS
target="${CARGO_TARGET_DIR:-target}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

# step TITLE COMMAND...: says what runs, and how long it took.
step() {
  local title="$1" from=$SECONDS
  shift
  echo
  echo "==> $title"
  "$@" || fail "$title (after $((SECONDS - from)) s): $*"
  echo "    ok: $title ($((SECONDS - from)) s)"
}

# need PROGRAM PACKAGE...: installs Debian packages when a program is missing.
need() {
  local program="$1"
  shift
  command -v "$program" > /dev/null && return
  echo "$program is missing; installing: $*"
  command -v apt-get > /dev/null || fail "$program is missing, and there is no apt-get to install $* with"
  [ "$(id -u)" = 0 ] || fail "$program is missing; install it first: sudo apt-get install --yes $*"
  apt-get update --quiet --quiet || fail "apt-get update"
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet --no-install-recommends "$@" ||
    fail "apt-get install $*"
}

tools() {
  command -v cargo > /dev/null || fail "cargo is missing; install the Rust toolchain from https://rustup.rs"
  cargo fmt --version || fail "rustfmt is missing; run: rustup component add rustfmt"
  cargo clippy --version || fail "clippy is missing; run: rustup component add clippy"
  cargo --version
  need cc gcc libc6-dev
  need curl curl ca-certificates
  need python3 python3
  # For clients and SDKs that are not ours, and an upstream that is not ours.
  need openssl openssl
  # For the store that replicas share.
  need redis-server redis-server
  # For fleets whose clocks are an hour apart.
  need faketime faketime
  need node nodejs
  need npm npm
  need nginx nginx-light
  # For the page; the font is for people who look at its screenshots.
  need chromium chromium fonts-wqy-microhei
  # For the alert rules and the dashboard's queries.
  need promtool prometheus
  python3 -c 'import venv, ensurepip' 2> /dev/null || need 'venv of python3' python3-venv
}

# The demo checks each of its claims itself; here, that it told the whole story and no secret.
demo() {
  local said="$work/demo"
  timeout 120 "$target/release/wechat-sidecar" demo > "$said" 2> "$said.log" || {
    cat "$said" "$said.log"
    return 1
  }
  cat "$said"
  local sentence
  for sentence in '"errcode":42001' 'x-wechat-sidecar-attempts: 2' 'all 50 were sent, with 1 token fetch' 'Done.'; do
    grep --quiet --fixed-strings "$sentence" "$said" || { echo "the demo did not say: $sentence"; return 1; }
  done
  ! grep --fixed-strings 0123456789abcdef0123456789abcdef "$said" "$said.log"
}

step "tools" tools
step "format" cargo fmt --check
step "lints" cargo clippy --locked --all-targets -- -D warnings
step "lints with traces" cargo clippy --locked --all-targets --features otel -- -D warnings
step "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
step "supply chain" bash tests/supply.sh
step "tests" cargo test --locked --no-fail-fast
step "traces" cargo test --locked --features otel --test integration wechat_traces
step "release build" cargo build --release --locked
step "demo" demo
step "command line" bash tests/cli.sh "$target/release/wechat-sidecar"
step "entries" bash tests/entries.sh "$target/release/wechat-sidecar"
step "central token server" bash tests/central.sh "$target/release/wechat-sidecar"
step "clients of others" bash tests/clients/run.sh "$target/release/wechat-sidecar"
step "fleets" bash tests/fleet/run.sh "$target/release/wechat-sidecar"
step "under fire" bash tests/fire/run.sh "$target/release/wechat-sidecar"
step "SDKs" bash tests/sdks/run.sh "$target/release/wechat-sidecar"
step "page" bash tests/page/run.sh "$target/release/wechat-sidecar" "$target/page"
step "image" bash tests/image.sh "$target/release/wechat-sidecar"
step "examples" bash tests/examples.sh "$target/release/wechat-sidecar"

echo
echo "All checks passed in $((SECONDS - began)) s."
