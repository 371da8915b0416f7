#!/usr/bin/env bash
# A central token server and its callers as other programs: openssl makes the certificate, curl and Python ask for the
# token, a follower takes it. Argument: the binary.
set -euo pipefail

source "$(dirname "$0")/lib.sh" "$@"
unset http_proxy https_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY

key=3f0c7f1b2a9d4e5f8b6a7c8d9e0f1a2b
echo "$key $appid  # everyone" > "$work/keys.txt"
echo "$key" > "$work/key.txt"
chmod 600 "$work/keys.txt" "$work/key.txt"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=our CA" \
  -keyout "$work/ca.key" -out "$work/ca.pem" 2> /dev/null
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=tokens.example.com \
  -keyout "$work/key.pem" -out "$work/cert.csr" 2> /dev/null
openssl x509 -req -in "$work/cert.csr" -CA "$work/ca.pem" -CAkey "$work/ca.key" -set_serial 1 -days 2 \
  -extfile <(echo subjectAltName=DNS:tokens.example.com,DNS:localhost,IP:127.0.0.1) -out "$work/cert.pem" 2> /dev/null

"$binary" simulate --listen 127.0.0.1:0 --control-listen 127.0.0.1:0 > "$work/sim" 2> "$work/sim.log" &
pids+=("$!")
until_found "Point a sidecar" "$work/sim"
api="$(sed -n 's|^  API *http://\([^ ]*\).*|\1|p' "$work/sim")"

check "a central server beyond loopback without TLS is refused" says admin_cert_file \
  env WECHAT_SIDECAR_SECRET="$secret" "$binary" check --appid "$appid" --upstream "http://$api" \
  --admin-listen 0.0.0.0:0 --central-keys-file "$work/keys.txt"

WECHAT_SIDECAR_SECRET="$secret" "$binary" run --appid "$appid" --upstream "http://$api" --listen 127.0.0.1:0 \
  --admin-listen 0.0.0.0:0 --admin-cert-file "$work/cert.pem" --admin-key-file "$work/key.pem" \
  --admin-hosts tokens.example.com --central-keys-file "$work/keys.txt" --operator-keys-file "$work/keys.txt" \
  --log trace --log-format json > "$work/server" 2> "$work/server.log" &
pids+=("$!")
until_found '"admin":"' "$work/server.log"
port="$(sed -n 's/.*"admin":"[^"]*:\([0-9]*\)".*/\1/p' "$work/server.log")"
check "wait needs no trust on this machine" works "$binary" wait --admin-listen "127.0.0.1:$port" --timeout 30s

curl=(curl --silent --show-error --max-time 20 --cacert "$work/ca.pem" --resolve "tokens.example.com:$port:127.0.0.1")
url="https://tokens.example.com:$port"
bearer=(--header "Authorization: Bearer $key")
check "curl, the token" says '"access_token":"' "${curl[@]}" "${bearer[@]}" "$url/v1/token?appid=$appid"
cp "$work/said" "$work/token.json"
check "curl, without a key" says no-key "${curl[@]}" --include "$url/v1/token?appid=$appid"
check "curl, a token that is no longer ours" says '"result":"another"' "${curl[@]}" "${bearer[@]}" \
  --data "{\"appid\":\"$appid\",\"refused\":\"82ab5cb0e8a5a12d\"}" "$url/v1/token/refresh"
check "curl, as a web page would" says cross-site "${curl[@]}" --include "${bearer[@]}" \
  --header "Origin: https://evil.example" --data '' "$url/refresh"
check "curl, the passive refresh" says '"result":"same"' "${curl[@]}" --data '' "http://127.0.0.1:$port/refresh"
check "curl, by force" says '"result":"another"' "${curl[@]}" "${bearer[@]}" --data '{"force":true}' "$url/refresh"

cat > "$work/ask.py" << 'PYTHON'
import json, ssl, sys, urllib.error, urllib.request
url, key, ca = sys.argv[1:4]
context = ssl.create_default_context(cafile=ca)
def ask(path, key, data=None):
    request = urllib.request.Request(url + path, data, {"Authorization": "Bearer " + key})
    with urllib.request.urlopen(request, timeout=20, context=context) as reply:
        return json.load(reply)
first = ask("/v1/token", key)
assert 7000 < first["expires_in"] <= 7200 and len(first["access_token"]) > 100, first
report = json.dumps({"refused": first["access_token"] + "x"}).encode()
assert ask("/v1/token/refresh", key, report)["access_token"] == first["access_token"]
try:
    ask("/v1/token", key[:-1] + "0")
    raise SystemExit("a wrong key")
except urllib.error.HTTPError as error:
    assert error.code == 401 and json.load(error)["errcode"] == 48001
PYTHON
check "Python, the token and a wrong key" works python3 "$work/ask.py" "https://localhost:$port" "$key" "$work/ca.pem"

"$binary" run --appid "$appid" --upstream "http://$api" --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 \
  --central "https://localhost:$port" --central-key-file "$work/key.txt" --central-ca-file "$work/ca.pem" \
  --log trace --log-format json > "$work/follower" 2> "$work/follower.log" &
pids+=("$!")
until_found '"listen":"' "$work/follower.log"
proxy="$(sed -n 's/.*"listen":"\([^"]*\)".*/\1/p' "$work/follower.log")"
admin="$(sed -n 's/.*"admin":"\([^"]*\)".*/\1/p' "$work/follower.log")"
check "a follower is ready without a secret" works "$binary" wait --admin-listen "$admin" --timeout 30s
check "and its calls go out" says ip_list "${curl[@]}" "http://$proxy/cgi-bin/get_api_domain_ip"
check "and logins say what is missing" says no-secret "${curl[@]}" --include "http://$proxy/sns/jscode2session?js_code=1"
check "check says that all is well" says "the central server gave a token" "$binary" check --appid "$appid" \
  --upstream "http://$api" --central "https://localhost:$port" --central-key-file "$work/key.txt" \
  --central-ca-file "$work/ca.pem"
token="$(sed -n 's/.*"access_token":"\([^"]*\)".*/\1/p' "$work/token.json")"
check "no line of a log holds a key, the secret or the token" \
  fails grep --fixed-strings -e "$key" -e "$secret" -e "$token" "$work/server.log" "$work/follower.log"

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
