#!/usr/bin/env bash
# The page for people in a real, headless Chromium, in front of a sidecar and a simulated WeChat. Arguments: the binary,
# and a folder where screenshots are left to be looked at. Needs Node 20, npm, and Debian's chromium.
set -euo pipefail

here="$(cd "$(dirname "$0")" && pwd)"
source "$here/../lib.sh" "$@"
mkdir -p "${2:?give a folder for screenshots}"
shots="$(realpath "$2")"

for program in node npm chromium curl; do
  command -v "$program" > /dev/null || fail "$program is missing; install it first"
done

"$binary" simulate --listen 127.0.0.1:0 --control-listen 127.0.0.1:0 > "$work/sim" 2> "$work/sim.log" &
pids+=("$!")
until_found "Point a sidecar" "$work/sim"
api="$(sed -n 's|^  API *http://\([^ ]*\).*|\1|p' "$work/sim")"
control="$(sed -n 's|^  control *http://\([^ ]*\).*|\1|p' "$work/sim")"
other=wxfedcba9876543210
curl --silent --fail --output /dev/null --data "{\"appid\":\"$other\",\"secret\":\"fedcba9876543210fedcba9876543210\"}" \
  "http://$control/account"

# The second account's secret is wrong.
cat > "$work/sidecar.toml" << TOML
[[account]]
appid = "$appid"
secret = "$secret"
[[account]]
appid = "$other"
secret = "00000000000000000000000000000bad"
TOML
chmod 600 "$work/sidecar.toml"
"$binary" run --config "$work/sidecar.toml" --upstream "http://$api" --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 \
  --log-format json > /dev/null 2> "$work/side" &
pids+=("$!")
until_found '"listen"' "$work/side"
until_found 'fetched a token' "$work/side"
until_found 'no token was fetched' "$work/side"
listen="$(sed -n 's|.*"listen":"\([^"]*\)".*|\1|p' "$work/side" | head -n 1)"
admin="$(sed -n 's|.*"admin":"\([^"]*\)".*|\1|p' "$work/side" | head -n 1)"

cp "$here/package.json" "$here/package-lock.json" "$here/check.mjs" "$work"
(cd "$work" && PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 npm ci --silent --no-audit --no-fund)
# What the browser says to itself is no news.
timeout 300 node "$work/check.mjs" "$admin" "$listen" "$control" "$(command -v chromium)" "$shots"
