#!/usr/bin/env bash
# Builds the release twice, in two folders of different names, and compares the bytes: by hand, as it takes a while.
#
#   tests/reproduce.sh [COMMIT]
#
# What makes it so: Cargo.lock, the same compiler, one codegen unit and no symbols (Cargo.toml), no path of the machine in
# the binary (--remap-path-prefix, and -ffile-prefix-map for ring's C), and the commit's time in place of now
# (SOURCE_DATE_EPOCH). Who builds a release does it with the same flags:
#
#   export SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
#   export RUSTFLAGS="--remap-path-prefix=$PWD=/src --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
#   export CFLAGS="-ffile-prefix-map=${CARGO_HOME:-$HOME/.cargo}=/cargo"
#   cargo build --release --locked
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
commit="$(git -C "$root" rev-parse "${1:-HEAD}")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cargo_home="${CARGO_HOME:-$HOME/.cargo}"
export SOURCE_DATE_EPOCH CFLAGS="-ffile-prefix-map=$cargo_home=/cargo"
SOURCE_DATE_EPOCH="$(git -C "$root" log -1 --format=%ct "$commit")"
for folder in one a-second-folder/of-another-length; do
  mkdir -p "$work/$folder"
  git -C "$root" archive "$commit" | tar -x -C "$work/$folder"
  (
    cd "$work/$folder"
    export CARGO_TARGET_DIR="$PWD/target"
    export RUSTFLAGS="--remap-path-prefix=$PWD=/src --remap-path-prefix=$cargo_home=/cargo"
    cargo build --release --locked --quiet
    sha256sum target/release/wechat-sidecar | tee -a "$work/sums"
    ! grep --text --quiet --fixed-strings -e "$cargo_home" -e "$work" target/release/wechat-sidecar ||
      echo "note: a path of this machine is in the binary"
  )
done
[ "$(cut -d ' ' -f 1 "$work/sums" | sort -u | wc -l)" = 1 ] || { echo "FAILED: the two differ" >&2; exit 1; }
echo "the same bytes twice, of commit $commit"
