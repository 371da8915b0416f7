#!/usr/bin/env bash
# What the binary is made of: the offline check always, cargo-deny where it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
# Also what only other systems need: its licence is looked at, too.
cargo fetch --locked --quiet
python3 tests/supply.py check
if ! command -v cargo-deny > /dev/null; then
  echo "skip advisories: cargo-deny is not installed (cargo install --locked cargo-deny); licences, sources and bans were checked above"
  exit 0
fi
cargo deny --offline check bans licenses sources
# The database of advisories is a git repository; cargo-deny keeps a copy, which may be old or not there.
if cargo deny --offline check advisories 2> /dev/null; then
  echo "ok   no advisory in the copy of the database that is here"
elif cargo deny fetch 2> /dev/null; then
  cargo deny check advisories
else
  echo "skip advisories: there is no copy of the advisory database here, and it cannot be fetched"
fi
