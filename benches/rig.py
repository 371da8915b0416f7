"""What the benches stand on: an upstream, the proxies that are compared, and what a process costs.

Everything runs on loopback, in a folder of its own that goes when the bench ends. The job is the same for every proxy:
put one access token of 512 characters into the query of a call and hand the call on.
"""

import glob
import http.client
import os
import random
import shutil
import signal
import socket
import string
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
APPID = "wx0123456789abcdef"
SECRET = "0123456789abcdef0123456789abcdef"
NAME = "wechat.test"
REPLY = '{"errcode":0,"errmsg":"ok","msgid":200228332,"note":"%s"}'
REPLY = REPLY % ("a reply of the size that most replies have; " * 3)[: 150 - len(REPLY) + 2]
BODY = b'{"touser":"OPENID","template_id":"TEMPLATE","page":"index","data":{"number":{"value":"339208499"},"note":{"value":"%s"}}}'
BODY = BODY % (b"x" * (200 - len(BODY) + 2))
assert (len(REPLY), len(BODY)) == (150, 200), (len(REPLY), len(BODY))
HEAD = (
    b"POST /cgi-bin/message/template/send?debug=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: wrk\r\n"
    b"Authorization: Basic dXNlcjpwYXNz\r\nContent-Type: application/json\r\nContent-Length: 200\r\n\r\n"
)



def free_ports(count):
    """Ports that nobody listens on now."""
    streams = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [stream.getsockname()[1] for stream in streams]
    for stream in streams:
        stream.close()
    return ports


PLAIN, TLS, SINK, *PEER_PORTS = free_ports(3 + 2 * 4)

# Debian's package for each program that is asked for.
PACKAGES = {
    "nginx": "nginx",
    "haproxy": "haproxy",
    "wrk": "wrk",
    "strace": "strace",
    "openssl": "openssl",
    "curl": "curl",
    "valgrind": "valgrind",
    "lua": "libnginx-mod-http-lua",
    "cjson": "lua-cjson",
}


def token(seed=7):
    letters = string.ascii_letters + string.digits + "-_"
    return "".join(random.Random(seed).choices(letters, k=512))


def which(program):
    return shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin")


def need(*programs):
    """Ends the bench when something is missing: a figure without its peer says nothing."""
    there = {
        "lua": os.path.exists("/usr/lib/nginx/modules/ngx_http_lua_module.so"),
        "cjson": bool(glob.glob("/usr/lib/*/lua/5.1/cjson.so")),
    }
    missing = [p for p in programs if not (there[p] if p in there else which(p))]
    if missing:
        packages = " ".join(PACKAGES[p] for p in missing)
        raise SystemExit(f"missing: {', '.join(missing)}; nothing is compared without it. apt-get install {packages}")


class Process:
    """One program and its children, started and ended here."""

    def __init__(self, argv, port=None, env=None, wait=True, stderr=subprocess.DEVNULL):
        self.started = time.monotonic()
        self.child = subprocess.Popen(
            argv, env=dict(os.environ, **(env or {})), stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
        self.pid, self.port = self.child.pid, port
        if wait:
            answer(self, port)

    def tree(self):
        found, todo = [], [self.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            try:
                for thread in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{thread}/children") as children:
                        todo += [int(child) for child in children.read().split()]
            except FileNotFoundError:
                pass
        return found

    def cpu(self):
        """Seconds on a CPU so far, in kernel and user space, of all threads of all processes."""
        total = 0
        for pid in self.tree():
            try:
                for thread in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{thread}/schedstat") as stat:
                        total += int(stat.read().split()[0])
            except FileNotFoundError:
                pass
        return total / 1e9

    def memory(self, key="Rss"):
        """MiB; `Pss` counts a page that several processes share once."""
        return sum(_kib(f"/proc/{pid}/smaps_rollup", key) for pid in self.tree()) / 1024

    def peak(self):
        return sum(_kib(f"/proc/{pid}/status", "VmHWM") for pid in self.tree()) / 1024

    def forget_peak(self):
        for pid in self.tree():
            with open(f"/proc/{pid}/clear_refs", "w") as clear:
                clear.write("5")

    def stop(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(10)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()


def _kib(path, key):
    with open(path) as lines:
        for line in lines:
            if line.startswith(key + ":"):
                return int(line.split()[1])
    return 0


def answer(process, port, path="/", patience=20):
    """Waits for the first answer of any kind; its body."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if process.child.poll() is not None:
            raise SystemExit(f"{process.child.args} ended with {process.child.returncode}")
        try:
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            client.request("GET", path)
            reply = client.getresponse()
            body = reply.read()
            if reply.status < 500:
                return body
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.001)
    raise SystemExit(f"{process.child.args} did not answer on port {port}")


class Rig:
    """The folder, the certificate and the upstream."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="wechat-sidecar-bench-")
        os.chmod(self.folder, 0o755)
        self.token = token()
        self.running = []
        self._certificates()
        with open(self.path("big"), "wb") as big:
            big.write(os.urandom(1 << 20) * 100)
        self.upstream = self.start([which("nginx"), "-c", self._upstream()], PLAIN)

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, text):
        with open(self.path(name), "w") as file:
            file.write(text)
        return self.path(name)

    def start(self, argv, port=None, **more):
        process = Process(argv, port, **more)
        self.running.append(process)
        return process

    def stop(self):
        for process in reversed(self.running):
            process.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _certificates(self):
        def openssl(*args):
            subprocess.run([which("openssl"), *args], cwd=self.folder, check=True, capture_output=True)

        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        openssl("req", "-x509", *curve, "-days", "2", "-subj", "/CN=bench", "-keyout", "ca.key", "-out", "ca.pem")
        openssl("req", *curve, "-subj", f"/CN={NAME}", "-keyout", "key.pem", "-out", "request.pem")
        self.write("names", f"subjectAltName=DNS:{NAME},DNS:localhost\n")
        openssl(
            *["x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"],
            *["-days", "2", "-extfile", "names", "-out", "cert.pem"],
        )

    def nginx(self, name, http_part, modules=""):
        """A configuration with one worker that keeps nothing on disk but what it must."""
        folders = " ".join(
            f"{kind}_temp_path {self.path(name + '-' + kind)};"
            for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        )
        return self.write(
            name + ".conf",
            f"""{modules}
worker_processes 1; daemon off; pid {self.path(name + ".pid")}; error_log {self.path(name + ".log")} error;
events {{ worker_connections 4096; }}
http {{
  access_log off; {folders}
  keepalive_requests 100000000; keepalive_timeout 1h; client_max_body_size 1g; client_body_buffer_size 64k;
  default_type application/json;
  {http_part}
}}""",
        )

    def _upstream(self):
        issued = f'{{"access_token":"{self.token}","expires_in":7200}}'
        return self.nginx(
            "upstream",
            f"""
  map_hash_bucket_size 1024;
  map $args $delivered {{ "x=1&access_token={self.token}" exactly; default altered; }}
  server {{
    listen 127.0.0.1:{PLAIN} backlog=4096; listen 127.0.0.1:{TLS} ssl backlog=4096;
    ssl_certificate {self.path("cert.pem")}; ssl_certificate_key {self.path("key.pem")}; ssl_protocols TLSv1.3;
    location = /cgi-bin/stable_token {{ return 200 '{issued}'; }}
    location = /delivered {{ return 200 $delivered; }}
    location = /cgi-bin/media/get {{ alias {self.path("big")}; default_type application/octet-stream; }}
    location = /cgi-bin/media/upload {{ proxy_pass http://127.0.0.1:{SINK}; proxy_request_buffering off; proxy_http_version 1.1; }}
    location / {{ return 200 '{REPLY}'; }}
  }}
  server {{ listen 127.0.0.1:{SINK}; location / {{ client_body_buffer_size 1m; return 200 '{REPLY}'; }} }}""",
        )


class Peer:
    """One proxy: how it is started, before a plain upstream or one of TLS."""

    def __init__(self, rig, name, port, admin_port):
        self.rig, self.name, self.port, self.admin_port = rig, name, port, admin_port

    def start(self, tls, wait=True):
        argv, env = getattr(self, "_" + self.name.replace("-", "_"))(tls)
        return self.rig.start(argv, self.port, env=env, wait=wait)

    def _wechat_sidecar(self, tls, log="warn"):
        origin = f"https://{NAME}" if tls else f"http://127.0.0.1:{PLAIN}"
        argv = [SIDECAR, "run", "--appid", APPID, "--upstream", origin, "--workers", "1", "--log", log]
        argv += ["--listen", f"127.0.0.1:{self.port}", "--admin-listen", f"127.0.0.1:{self.admin_port}"]
        if tls:
            argv += ["--upstream-address", f"127.0.0.1:{TLS}", "--upstream-ca-file", self.rig.path("ca.pem")]
        return argv, {"WECHAT_SIDECAR_SECRET": SECRET}

    def _upstream_block(self, tls):
        port = TLS if tls else PLAIN
        verify = (
            f"proxy_ssl_verify on; proxy_ssl_trusted_certificate {self.rig.path('ca.pem')}; proxy_ssl_name {NAME}; "
            "proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.3;"
        )
        passes = f"proxy_pass {'https' if tls else 'http'}://up; proxy_http_version 1.1; proxy_set_header Connection '';"
        block = f"upstream up {{ server 127.0.0.1:{port}; keepalive 1024; keepalive_requests 100000000; keepalive_timeout 1h; }}"
        return block, passes + (verify if tls else "")

    def _nginx(self, tls):
        block, passes = self._upstream_block(tls)
        inject = f'set $args "$args&access_token={self.rig.token}";'
        server = f"{block} server {{ listen 127.0.0.1:{self.port} backlog=4096; location / {{ {inject} {passes} }} }}"
        return [which("nginx"), "-c", self.rig.nginx("nginx-peer", server)], {}

    def _nginx_lua(self, tls):
        """What a user would write: looks at the answer, and asks again when the token was refused."""
        block, passes = self._upstream_block(tls)
        code = f"""
      local cjson = require "cjson.safe"
      ngx.req.read_body()
      local methods = {{ GET = ngx.HTTP_GET, POST = ngx.HTTP_POST }}
      local reply
      for attempt = 1, 2 do
        reply = ngx.location.capture("/up" .. ngx.var.uri, {{
          method = methods[ngx.req.get_method()], args = (ngx.var.args or "") .. "&access_token={self.rig.token}",
          always_forward_body = true }})
        local json = cjson.decode(reply.body)
        local errcode = type(json) == "table" and json.errcode
        if errcode ~= 40001 and errcode ~= 42001 and errcode ~= 40014 then break end
      end
      ngx.status = reply.status
      ngx.header["Content-Type"] = reply.header["Content-Type"]
      ngx.header["Content-Length"] = #reply.body
      ngx.print(reply.body)"""
        server = f"""{block} server {{ listen 127.0.0.1:{self.port} backlog=4096;
    location / {{ content_by_lua_block {{ {code} }} }}
    location /up/ {{ internal; rewrite ^/up(/.*)$ $1 break; {passes} }} }}"""
        modules = "\n".join(
            f"load_module {path};"
            for path in ["/usr/lib/nginx/modules/ndk_http_module.so", "/usr/lib/nginx/modules/ngx_http_lua_module.so"]
        )
        return [which("nginx"), "-c", self.rig.nginx("nginx-lua", server, modules)], {}

    def _haproxy(self, tls):
        server = f"127.0.0.1:{TLS} ssl verify required ca-file {self.rig.path('ca.pem')} sni str({NAME}) verifyhost {NAME}"
        config = self.rig.write(
            "haproxy.cfg",
            f"""global
  nbthread 1
  maxconn 8192
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  http-reuse always
frontend f
  bind 127.0.0.1:{self.port} backlog 4096
  http-request set-query %[query]&access_token={self.rig.token}
  default_backend b
backend b
  server s {server if tls else f"127.0.0.1:{PLAIN}"} pool-purge-delay 1h
""",
        )
        return [which("haproxy"), "-f", config], {}

    def check(self):
        """That it delivers the exact token."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        client.request("GET", "/delivered?x=1")
        got = client.getresponse().read().decode()
        if got != "exactly":
            raise SystemExit(f"{self.name} does not deliver the query with the token as it should: {got}")


SIDECAR = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release", "wechat-sidecar")


def peers(rig):
    names = ["nginx", "nginx-lua", "haproxy", "wechat-sidecar"]
    return [Peer(rig, name, *PEER_PORTS[2 * n : 2 * n + 2]) for n, name in enumerate(names)]


def calls(port, count):
    """So many calls on one connection, one after the other."""
    stream = socket.create_connection(("127.0.0.1", port))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(count):
        stream.sendall(HEAD + BODY)
        got = b""
        while len(got) < 4 or got.count(b"\r\n\r\n") == 0 or len(got.split(b"\r\n\r\n", 1)[1]) < len(REPLY):
            piece = stream.recv(65536)
            if not piece:
                raise SystemExit(f"the connection was closed after {got!r}")
            got += piece
        head, _, body = got.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200") or body != REPLY.encode():
            raise SystemExit(f"not the answer that was sent: {got!r}")
    stream.close()
