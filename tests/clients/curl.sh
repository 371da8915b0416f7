#!/usr/bin/env bash
# curl against a sidecar. BASE, CONTROL, PLAIN and UPSTREAM come from `rig.py with`; max_body is 64 MiB here.
set -u
work=$(mktemp -d -p "$E2E_TMP")
sent=/cgi-bin/message/custom/send
json='{"touser":"oAbc","text":{"content":"你好 \u4f60 <b>&"}}'

check() { # name, expected, got
    if [ "$2" = "$3" ]; then
        printf 'ok   curl: %s (%s)\n' "$1" "$UPSTREAM"
    else
        printf 'FAIL curl: %s (%s)\n     expected: %s\n     got:      %s\n' "$1" "$UPSTREAM" "$2" "${3:0:600}"
    fi
}
contains() { # name, part, whole
    case $3 in *"$2"*) check "$1" yes yes ;; *) check "$1" "something with: $2" "$3" ;; esac
}
call() { # curl's arguments; the body lands in $work/body, the head in $work/head, status in $status
    status=$(curl -sS --max-time 30 -D "$work/head" -o "$work/body" -w '%{http_code}' "$@" 2>"$work/error")
    exit_code=$?
    cat "$work/head" >>"$E2E_TMP/received/curl"
    [ "$(stat -c %s "$work/body" 2>/dev/null || echo 0)" -lt 1000000 ] && cat "$work/body" >>"$E2E_TMP/received/curl"
    body=$(tr -d '\0' <"$work/body" 2>/dev/null | head -c 4000)
}
lever() { curl -sS -o /dev/null -H 'content-type: application/json' -d "${2:-{\}}" "$CONTROL$1"; }
seen() { # a Python expression over `s`, the last request the upstream saw but for token fetches
    curl -sS "$CONTROL/seen?limit=20" | python3 -c "
import json, re, sys
s = [s for s in json.load(sys.stdin) if not s['target'].startswith(('/cgi-bin/token', '/cgi-bin/stable_token'))][-1]
s['target'] = re.sub('access_token=[^&]{32,}', 'access_token=TOKEN', s['target'])
h = {}
for name, value in s['headers']:
    h.setdefault(name, []).append(value)
print($1)"
}
sha() { sha256sum <"$1" | cut -d' ' -f1; }
errcode() { python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["errcode"])' "$work/body" 2>&1 | tail -n 1; }

# Ordinary calls.
call "$BASE/cgi-bin/user/info?openid=oAbc&lang=zh_CN"
check 'GET' '200 oAbc' "$status $(grep -o oAbc "$work/body" | head -n 1)"
check 'GET: the upstream saw our token, last' '/cgi-bin/user/info?openid=oAbc&lang=zh_CN&access_token=TOKEN' "$(seen "s['target']")"
call "$BASE$sent?access_token=placeholder&a=1" -d "$json" -H 'content-type: application/json'
check 'POST' '200 0' "$status $(errcode)"
check 'POST: the placeholder is gone' "$sent?a=1&access_token=TOKEN" "$(seen "s['target']")"
check 'POST: the same bytes arrived' "$(printf %s "$json" | sha256sum | cut -d' ' -f1)" "$(seen "s['body_sha256']")"
call "$BASE$sent" -d "$json" -H 'Content-Type:'
check 'POST without Content-Type: none is made up' 'False' "$(seen "'content-type' in h")"
call -I "$BASE/cgi-bin/user/info?openid=oAbc" -w ' %{size_download} %{exitcode}'
check 'HEAD' '200 0 0' "$(head -n 1 "$work/head" | cut -d' ' -f2)${status#*200}"
call -X PUT "$BASE/cgi-bin/anything" -d "$json"
check 'PUT' '200 PUT' "$status $(seen "s['method']")"
call -X DELETE "$BASE/cgi-bin/anything"
check 'DELETE without a body' '200 DELETE 0' "$status $(seen "s['method']") $(seen "s['body_length']")"
call -X POST "$BASE/cgi-bin/getcallbackip"
check 'POST without a body has a Content-Length' "200 ['0']" "$status $(seen "h.get('content-length')")"
call "$BASE/cgi-bin/user/info?openid=oAbc" -H 'X-App: 1' -H 'Connection: X-Hop' -H 'X-Hop: 1' -H 'Keep-Alive: 5' -H 'TE: trailers'
check 'hop-by-hop headers stay here, others pass' "['1'] False False False" \
    "$(seen "h.get('x-app'), 'x-hop' in h, 'keep-alive' in h, 'te' in h" | tr -d '(),')"
check 'Host is the upstream, not us' True "$(seen "h['host'] != ['${BASE#http://}'] and len(h['host']) == 1")"
call "$BASE/cgi-bin/user/info?openid=oAbc" --compressed
check 'an app that offers compression is answered' '200' "$status"

# Bodies of every kind.
# The simulator keeps 64 KiB of an upload, so only a small one can come back from it.
head -c "$([ "$UPSTREAM" = sim ] && echo 40000 || echo 3000000)" /dev/urandom >"$work/photo.jpg"
call "$BASE/cgi-bin/media/upload?type=image" -F "media=@$work/photo.jpg;type=image/jpeg"
check 'multipart upload' 200 "$status"
media=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1])).get("media_id"))' "$work/body")
call "$BASE/cgi-bin/media/get?media_id=$media"
check 'what was uploaded comes back' "$(sha "$work/photo.jpg")" "$(sha "$work/body")"
printf %s "$json" | curl -sS -o "$work/body" -w '%{http_code}' -H 'Transfer-Encoding: chunked' -H 'content-type: application/json' \
    --data-binary @- "$BASE$sent" >"$work/status"
check 'chunked upload' '200 0' "$(cat "$work/status") $(errcode)"
check 'chunked upload: sent on with a length' "False ['$(printf %s "$json" | wc -c)']" "$(seen "'transfer-encoding' in h, h.get('content-length')" | tr -d '(),')"
call -0 "$BASE/cgi-bin/user/info?openid=oAbc"
check 'HTTP/1.0 GET' "200" "$status"
call -0 "$BASE/cgi-bin/media/get?media_id=$media"
check 'HTTP/1.0 download' "$(sha "$work/photo.jpg")" "$(sha "$work/body")"
call -0 "$BASE$sent" -d "$json"
check 'HTTP/1.0 POST' '200 0' "$status $(errcode)"
call "$BASE$sent" -d "$json" -H 'Expect: 100-continue' --expect100-timeout 20
check 'Expect: 100-continue' '200 0' "$status $(errcode)"
check 'Expect is not passed on' False "$(seen "'expect' in h")"
call "$BASE/cgi-bin/user/info?openid=o1" --next -sS "$BASE/cgi-bin/user/info?openid=o2" -o "$work/second" -w ' %{num_connects}'
check 'two URLs on one connection' '200 0' "$status"

# A token that died is not noticed by curl, whatever it sends.
lever /expire
call "$BASE$sent" -d "$json"
check 'POST with an expired token' '200 0' "$status $(errcode)"
contains 'a replayed call says so' 'x-wechat-sidecar-attempts: 2' "$(tr 'A-Z' 'a-z' <"$work/head")"
lever /rotate '{"at_once":true}'
call "$BASE/cgi-bin/media/upload?type=image" -F "media=@$work/photo.jpg;type=image/jpeg"
media=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1])).get("media_id"))' "$work/body")
call "$BASE/cgi-bin/media/get?media_id=$media"
check 'multipart upload with a rotated token' "$(sha "$work/photo.jpg")" "$(sha "$work/body")"
lever /expire
call "$BASE/cgi-bin/media/get?media_id=$media"
check 'download with an expired token' "$(sha "$work/photo.jpg")" "$(sha "$work/body")"
lever /expire
call "$BASE$sent" -H 'Transfer-Encoding: chunked' -d "$json"
check 'chunked with an expired token' '200 0' "$status $(errcode)"
lever /expire
call -0 "$BASE$sent" -d "$json"
check 'HTTP/1.0 with an expired token' '200 0' "$status $(errcode)"

# Big ones: 50 MB is above replay_limit (16 MiB), so it streams and goes once.
head -c 50000000 /dev/urandom >"$work/big"
call "$BASE/cgi-bin/media/upload?type=video" -H 'content-type: application/octet-stream' -H 'Expect:' --data-binary "@$work/big"
check '50 MB upload' "200 $(sha "$work/big")" "$status $(seen "s['body_sha256']")"
call "$BASE/cgi-bin/media/get?media_id=big-50000000"
lever /accept_token '{"token":"e2e-direct"}'
curl -sS -o "$work/direct" "$PLAIN/cgi-bin/media/get?media_id=big-50000000&access_token=e2e-direct"
check '50 MB download, as without the sidecar' "$(sha "$work/direct")" "$(sha "$work/body")"
lever /expire
call "$BASE/cgi-bin/media/upload?type=video" -H 'content-type: application/octet-stream' -H 'Expect:' --data-binary "@$work/big"
case $(tr -d '\r\n' <"$work/body") in *42001*) refused=42001 ;; *) refused=$body ;; esac
check 'an upload above replay_limit with a dead token: WeChat'"'"'s own refusal' '200 42001' "$status $refused"
call "$BASE/cgi-bin/media/upload?type=video" -H 'content-type: application/octet-stream' -H 'Expect:' --data-binary "@$work/big"
check 'and the next one finds a fresh token' "200 $(sha "$work/big")" "$status $(seen "s['body_sha256']")"
truncate -s 70000000 "$work/huge"
call "$BASE/cgi-bin/media/upload" -H 'Expect: 100-continue' --expect100-timeout 20 -T "$work/huge" -X POST -w '%{http_code} %{size_upload}'
check 'over max_body with Expect: 413 and not a byte sent' '413 0 body-too-large' \
    "$status $(grep -i '^x-wechat-sidecar-error' "$work/head" | tr -d '\r' | cut -d' ' -f2)"
call "$BASE/cgi-bin/media/upload" -H 'Expect:' -H 'Transfer-Encoding: chunked' -T "$work/huge" -X POST
check 'over max_body, chunked' '413 45002' "$status $(errcode)"
rm -f "$work/big" "$work/direct" "$work/huge"

# Targets: every byte as written.
query='a=%2F+%20&中文=值&empty=&dup=1&dup=2&%zz'
call --globoff "$BASE/cgi-bin/user/info?$query&openid=o"
check 'raw UTF-8 and odd escapes in a query' "200" "$status"
check 'the query kept its bytes' True "$(seen "s['target'].encode('latin-1', 'replace') in ('/cgi-bin/user/info?$query&openid=o&access_token=TOKEN'.encode(),) or s['target'] == '/cgi-bin/user/info?$query&openid=o&access_token=TOKEN'")"
call --path-as-is "$BASE/cgi-bin/a/../b"
check 'dot segments that change nothing pass as they are' '/cgi-bin/a/../b?access_token=TOKEN' "$(seen "s['target']")"
call --path-as-is "$BASE/sns/jscode2session/../../cgi-bin/token?grant_type=client_credential"
check 'dot segments towards the token endpoint' '400 ambiguous-path' "$status $(grep -i '^x-wechat-sidecar-error' "$work/head" | tr -d '\r' | cut -d' ' -f2)"
call --path-as-is "$BASE//example.com/cgi-bin/user/info"
check '//host/ goes nowhere' '400 40097' "$status $(errcode)"
call "$BASE/cgi-bin/token?grant_type=client_credential&appid=wx0123456789abcdef&secret=x"
contains 'GET token is answered with a placeholder' '"expires_in":7200' "$(tr -d ' ' <"$work/body")"

# Not an HTTP/2 server, and a proxy for WeChat's hosts only.
call --http2-prior-knowledge "$BASE/cgi-bin/user/info?openid=o" --max-time 5
check 'HTTP/2 by prior knowledge fails, and at once' 'refused' "$([ "$exit_code" -ne 0 ] && [ "$exit_code" -ne 28 ] && echo refused || echo "exit $exit_code, status $status")"
call -x "$BASE" "http://api.weixin.qq.com/cgi-bin/user/info?openid=o"
check 'as an http proxy for WeChat' '200 True' "$status $(seen "'api.weixin' not in str(h)")"
call -x "$BASE" "http://mp.weixin.qq.com/cgi-bin/user/info?openid=o"
check 'as an http proxy for another host: refused' '400 bad-target' "$status $(grep -i '^x-wechat-sidecar-error' "$work/head" | tr -d '\r' | cut -d' ' -f2)"
contains 'and told what to do' 'base URL' "$body"
call -x "$BASE" "https://api.weixin.qq.com/cgi-bin/user/info?openid=o"
contains 'as an https proxy: CONNECT is refused' 'CONNECT' "$(cat "$work/error")$(head -n 1 "$work/head")"
check 'with 405' 'HTTP/1.1 405' "$(head -n 1 "$work/head" | cut -c 1-12)"
call "$BASE/cgi-bin/user/info?openid=o" -H 'Host: evil.example'
check 'a foreign Host is turned away' '421 misdirected' "$status $(grep -i '^x-wechat-sidecar-error' "$work/head" | tr -d '\r' | cut -d' ' -f2)"
call "$BASE/cgi-bin/user/info?openid=o" -H 'Origin: https://evil.example'
check 'a page in a browser is turned away' '403 browser' "$status $(grep -i '^x-wechat-sidecar-error' "$work/head" | tr -d '\r' | cut -d' ' -f2)"
call -X TRACE "$BASE/cgi-bin/user/info"
check 'TRACE' 405 "$status"
call "$BASE/cgi-bin/user/info?openid=o" -H "X-Big: $(head -c 70000 /dev/zero | tr '\0' a)"
check 'an over-long head' 431 "$status"

placeholders=$(curl -sS "$CONTROL/counts" | python3 -c 'import json,sys; c=json.load(sys.stdin); print(c["unknown_tokens"], c["duplicate_tokens"], c["chunked_refused"])')
check 'the upstream saw no placeholder, no second token, no chunked request' '0 0 0' "$placeholders"
rm -rf "$work"
