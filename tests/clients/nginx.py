"""nginx as the upstream's TLS front, as WeChat has one: 412 for chunked requests, files from its own disk, connections
that it closes after 20 requests or a second of quiet; behind it the Python WeChat for everything that needs a token."""

import hashlib
import http.client
import os
import subprocess
import threading
import time
import socket
from urllib.parse import urlsplit

from rig import TMP, OwnWeChat, Sidecar, check, equal, received

CONF = """
daemon off; worker_processes 1; pid {tmp}/nginx.pid; error_log {tmp}/logs/nginx-error warn;
{user}
events {{ worker_connections 2048; }}
http {{
  access_log off;
  client_body_temp_path {tmp}/nginx-body; proxy_temp_path {tmp}/nginx-proxy; fastcgi_temp_path {tmp}/nginx-f;
  uwsgi_temp_path {tmp}/nginx-u; scgi_temp_path {tmp}/nginx-s;
  server {{
    listen 127.0.0.1:{port} ssl backlog=1024;
    ssl_certificate {tmp}/server.pem; ssl_certificate_key {tmp}/server.key;
    keepalive_timeout 1s; keepalive_requests 20; client_max_body_size 60m;
    gzip on; gzip_types application/json; gzip_min_length 1; gzip_proxied any;
    if ($http_transfer_encoding) {{ return 412; }}
    location /cgi-bin/ {{ proxy_pass {backend}; proxy_http_version 1.1; proxy_set_header Host $host;
                         proxy_request_buffering off; }}
    location = /cgi-bin/static {{ default_type application/json; return 200 '{{"errcode":0,"from":"nginx"}}'; }}
    location = /cgi-bin/early {{ return 403 'not now'; }}
    location = /wxa/file {{ alias {tmp}/file.bin; default_type image/jpeg; }}
  }}
}}
"""


def call(base, method, path, body=None, head=None, connection=None):
    mine = connection or http.client.HTTPConnection(urlsplit(base).netloc, timeout=20)
    mine.request(method, path, body, head or {})
    reply = mine.getresponse()
    data = reply.read()
    received("nginx", reply.headers, data)
    if connection is None:
        mine.close()
    return reply.status, reply.headers, data


def checks(base, upstream):
    status, _, body = call(base, "GET", "/cgi-bin/static")
    equal("nginx: a static answer", (status, b'"from":"nginx"' in body), (200, True))
    status, head, _ = call(base, "GET", "/cgi-bin/static", head={"Accept-Encoding": "gzip, br"})
    equal("nginx: no gzip on a route whose refusals must be seen", (status, head.get("content-encoding")), (200, None))
    status, _, body = call(base, "POST", "/cgi-bin/message/custom/send", iter([b'{"touser":', b'"o"}']))
    equal("nginx: a chunked call is not refused with 412", (status, b'"errcode": 0' in body), (200, True))
    with open(os.path.join(TMP, "file.bin"), "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    status, _, body = call(base, "GET", "/wxa/file")
    equal("nginx: a 40 MB download", (status, hashlib.sha256(body).hexdigest()), (200, digest))
    status, head, body = call(base, "GET", "/wxa/file", head={"Range": "bytes=1000-1999"})
    equal("nginx: a range of it", (status, len(body), head.get("content-range", "")[:15]), (206, 1000, "bytes 1000-1999"))
    etag = call(base, "HEAD", "/wxa/file")[1].get("etag")
    status, _, body = call(base, "GET", "/wxa/file", head={"If-None-Match": etag or ""})
    equal("nginx: 304 without a body", (status, body), (304, b""))
    upload = os.urandom(50_000_000)
    status, _, _ = call(base, "POST", "/cgi-bin/media/upload", upload)
    equal("nginx: a 50 MB upload", (status, upstream.ask("/seen")[-1]["body_sha256"]), (200, hashlib.sha256(upload).hexdigest()))
    # nginx answers before it has read the body: the answer counts, not the broken pipe.
    status, _, _ = call(base, "POST", "/cgi-bin/early", os.urandom(300_000))
    equal("nginx: an answer before the body's end (300 KB)", status, 403)
    try:
        got = call(base, "POST", "/cgi-bin/media/upload", bytes(70_000_000))[0]
    except OSError as error:
        got = repr(error)
    equal("nginx: its own 413 for 70 MB reaches the app", got, 413)
    upstream.ask("/expire", {})
    photo = os.urandom(5_000_000)
    status, head, _ = call(base, "POST", "/cgi-bin/media/upload", photo)
    equal("nginx: a 5 MB upload with a dead token goes twice, the same bytes",
          (status, head.get("x-wechat-sidecar-attempts"), upstream.ask("/seen")[-1]["body_sha256"]),
          (200, "2", hashlib.sha256(photo).hexdigest()))


def closing(base):
    """nginx closes a connection after 20 requests or one quiet second; the app must not notice either."""
    told, lock = [], threading.Lock()

    def some(pause):
        connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=20)
        for turn in range(60):
            try:
                status, _, body = call(base, "POST", "/cgi-bin/message/custom/send", b'{"touser":"o"}', None, connection)
            except (OSError, http.client.HTTPException) as error:
                status, body = repr(error), b""
            with lock:
                told.append(status if b'"errcode": 0' in body else (status, body[:200]))
            if turn % 20 == 10:
                time.sleep(pause)

    # Pauses around nginx's second: a call that leaves just as nginx closes is the hard one, so not exactly on it.
    threads = [threading.Thread(target=some, args=(0.7 + 0.15 * (n % 2) if n < 4 else 1.2 + 0.1 * n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = [each for each in told if each != 200]
    equal("nginx: %d calls over connections that it keeps closing" % len(told), wrong[:3], [])


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


with open(os.path.join(TMP, "file.bin"), "wb") as out:
    out.write(os.urandom(40_000_000))
os.chmod(TMP, 0o755)
with OwnWeChat() as wechat:
    port = free_port()
    with open(os.path.join(TMP, "nginx.conf"), "w") as conf:
        user = "user root;" if os.getuid() == 0 else ""
        conf.write(CONF.format(tmp=TMP, port=port, backend=wechat.plain, user=user))
    log = open(os.path.join(TMP, "logs", "nginx"), "wb")
    nginx = subprocess.Popen(["nginx", "-c", os.path.join(TMP, "nginx.conf"), "-e", os.path.join(TMP, "logs", "nginx-start")],
                             stdout=log, stderr=log)
    try:
        with Sidecar(wechat, url="https://127.0.0.1:%d" % port) as sidecar:
            checks(sidecar.base, wechat)
            closing(sidecar.base)
    finally:
        nginx.terminate()
        nginx.wait(10)
