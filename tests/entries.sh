#!/usr/bin/env bash
# Apps that have no base URL to set, as real ones: curl, Python's and Node's own HTTP clients, through the HTTP proxy,
# the HTTPS proxy and the TLS listener. Argument: the binary. Node is tested where there is one.
set -euo pipefail

source "$(dirname "$0")/lib.sh" "$@"
unset http_proxy https_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY
unset SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE NODE_EXTRA_CA_CERTS

"$binary" simulate --listen 127.0.0.1:0 --control-listen 127.0.0.1:0 > "$work/sim" 2> "$work/sim.log" &
pids+=("$!")
until_found "Point a sidecar" "$work/sim"
api="$(sed -n 's|^  API *http://\([^ ]*\).*|\1|p' "$work/sim")"

check "ca makes a CA and says how it is trusted" says NODE_EXTRA_CA_CERTS "$binary" ca --dir "$work/ca"
check "its key is for its owner alone" says 600 stat --format=%a "$work/ca/ca-key.pem"
before="$(cat "$work/ca/ca.pem" "$work/ca/ca-key.pem")"
check "ca finds it again" says Found "$binary" ca --dir "$work/ca"
check "and leaves it as it is" test "$before" = "$(cat "$work/ca/ca.pem" "$work/ca/ca-key.pem")"
check "ca refuses a CA for other hosts" \
  says "not good for gateway.example.com" "$binary" ca --dir "$work/ca" --upstream-hosts gateway.example.com
mkdir "$work/half" && cp "$work/ca/ca.pem" "$work/half"
check "ca refuses half a pair" fails "$binary" ca --dir "$work/half"
"$binary" ca --dir "$work/ca" > "$work/printed" 2>&1
check "nothing it prints is of the key" \
  fails grep --fixed-strings --file <(grep --invert-match "KEY" "$work/ca/ca-key.pem") "$work/printed"
if command -v openssl > /dev/null; then
  # Whoever has the key signs for another host, and the app's TLS does not take it.
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=evil.example \
    -keyout "$work/evil.key" -out "$work/evil.csr" 2> /dev/null
  openssl x509 -req -in "$work/evil.csr" -CA "$work/ca/ca.pem" -CAkey "$work/ca/ca-key.pem" -set_serial 1 \
    -extfile <(echo subjectAltName=DNS:evil.example) -out "$work/evil.pem" 2> /dev/null
  check "OpenSSL refuses a certificate for another host that this CA signed" \
    says "permitted subtree violation" openssl verify -CAfile "$work/ca/ca.pem" "$work/evil.pem"
fi

export WECHAT_SIDECAR_SECRET=0123456789abcdef0123456789abcdef
"$binary" run --appid "$appid" --upstream "http://$api" --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 \
  --ca-dir "$work/ca" --tls-listen 127.0.0.1:0 --log trace --log-format json > "$work/run" 2> "$work/run.log" &
run=$!
pids+=("$run")
until_found "\"tls_listen\":\"" "$work/run.log"
proxy="$(sed -n 's/.*"listen":"\([^"]*\)".*/\1/p' "$work/run.log")"
admin="$(sed -n 's/.*"admin":"\([^"]*\)".*/\1/p' "$work/run.log")"
tls="$(sed -n 's/.*"tls_listen":"\([^"]*\)".*/\1/p' "$work/run.log")"
check "the sidecar is ready" works "$binary" wait --admin-listen "$admin" --timeout 30s

ca="$work/ca/ca.pem"
path=/cgi-bin/get_api_domain_ip
url="https://api.weixin.qq.com$path"
curl=(curl --silent --show-error --max-time 20)
check "curl, HTTP proxy" says ip_list "${curl[@]}" -x "http://$proxy" "http://api.weixin.qq.com$path"
check "curl, HTTP proxy, another host" \
  says bad-target "${curl[@]}" --include -x "http://$proxy" http://evil.example/
check "curl, HTTPS proxy" says ip_list "${curl[@]}" -x "http://$proxy" --cacert "$ca" "$url"
check "curl, HTTPS proxy, two calls on one tunnel" \
  says "1 0" "${curl[@]}" -x "http://$proxy" --cacert "$ca" --write-out '%{num_connects} ' -o /dev/null "$url" -o /dev/null "$url"
check "curl, HTTPS proxy, HTTP/2 wanted" says ip_list "${curl[@]}" --http2 -x "http://$proxy" --cacert "$ca" "$url"
check "curl, HTTPS proxy, TLS 1.2" says ip_list "${curl[@]}" --tls-max 1.2 -x "http://$proxy" --cacert "$ca" "$url"
check "curl, HTTPS proxy, HTTP/1.0 CONNECT" says ip_list "${curl[@]}" --proxy1.0 "$proxy" --cacert "$ca" "$url"
check "curl, HTTPS proxy, another host" \
  says "response 403" "${curl[@]}" -x "http://$proxy" --cacert "$ca" https://evil.example/
check "curl, HTTPS proxy, a CA it does not trust" fails "${curl[@]}" -x "http://$proxy" "$url"
here=(--resolve "api.weixin.qq.com:${tls##*:}:127.0.0.1" --resolve "evil.example:${tls##*:}:127.0.0.1")
check "curl, the host itself" \
  says ip_list "${curl[@]}" "${here[@]}" --cacert "$ca" "https://api.weixin.qq.com:${tls##*:}$path"
check "curl, another host" fails "${curl[@]}" "${here[@]}" --cacert "$ca" "https://evil.example:${tls##*:}/"
check "curl, another Host" says misdirected "${curl[@]}" --include "${here[@]}" --cacert "$ca" \
  --header "Host: evil.example" "https://api.weixin.qq.com:${tls##*:}$path"
check "curl, plain HTTP to the TLS port" says plain-http "${curl[@]}" --include "http://$tls$path"

cat > "$work/call.py" << 'PYTHON'
import json, ssl, sys, urllib.request
proxy, ca, url = sys.argv[1:4]
context = ssl.create_default_context(cafile=ca)
# What Python 3.13 asks for by default.
context.verify_flags |= ssl.VERIFY_X509_STRICT
opener = urllib.request.build_opener(
    urllib.request.ProxyHandler({"http": proxy, "https": proxy}), urllib.request.HTTPSHandler(context=context))
for _ in range(3):
    with opener.open(url, timeout=20) as reply:
        assert "ip_list" in json.load(reply)
PYTHON
check "Python, HTTP proxy" works python3 "$work/call.py" "http://$proxy" "$ca" "http://api.weixin.qq.com$path"
check "Python, HTTPS proxy, strict X.509" works python3 "$work/call.py" "http://$proxy" "$ca" "$url"
check "Python, HTTPS proxy, by SSL_CERT_FILE" works env SSL_CERT_FILE="$ca" HTTPS_PROXY="http://$proxy" \
  python3 -c "import urllib.request as u; assert b'ip_list' in u.urlopen('$url', timeout=20).read()"

if command -v node > /dev/null; then
  cat > "$work/call.js" << 'NODE'
const http = require('http'), https = require('https'), tls = require('tls');
const [proxy, port, path] = process.argv.slice(2);
const done = name => reply => {
  let body = '';
  reply.on('data', piece => body += piece).on('end', () => {
    if (!body.includes('ip_list')) throw new Error(name + ': ' + body);
  });
};
const [host, at] = proxy.split(':');
http.request({ host, port: at, method: 'CONNECT', path: 'api.weixin.qq.com:443' }).on('connect', (reply, socket) => {
  if (reply.statusCode !== 200) throw new Error('CONNECT: ' + reply.statusCode);
  const agent = new https.Agent();
  agent.createConnection = () => tls.connect({ socket, servername: 'api.weixin.qq.com' });
  https.get({ host: 'api.weixin.qq.com', path, agent }, done('HTTPS proxy'));
}).end();
https.get({ host: '127.0.0.1', port, path, servername: 'api.weixin.qq.com',
  headers: { Host: 'api.weixin.qq.com' }, checkServerIdentity: (_, cert) => tls.checkServerIdentity('api.weixin.qq.com', cert) },
  done('the host itself'));
NODE
  check "Node, HTTPS proxy and the host itself, by NODE_EXTRA_CA_CERTS" \
    works env NODE_EXTRA_CA_CERTS="$ca" node "$work/call.js" "$proxy" "${tls##*:}" "$path"
fi

kill -TERM "$run"
check "SIGTERM ends it" works tail --pid="$run" --follow /dev/null
check "no line of its log holds a key or the secret" \
  fails grep --extended-regexp "PRIVATE KEY|$WECHAT_SIDECAR_SECRET" "$work/run.log"
check "tls_listen without a CA is refused" says "wechat-sidecar ca" "$binary" run --appid "$appid" --tls-listen 127.0.0.1:0
chmod 644 "$work/ca/ca-key.pem"
check "a key that everyone may read is refused" \
  says "chmod 600" "$binary" run --appid "$appid" --ca-dir "$work/ca" --listen 127.0.0.1:0

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
