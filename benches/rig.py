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
PATH = "/cgi-bin/message/template/send?debug=1"


class Shape:
    """The small call: a POST with a JSON body, `headers` header lines as it leaves the app, and the reply to it."""

    def __init__(self, body=200, reply=150, headers=5, reply_headers=0, errcode="first"):
        self.body = self._json('{"touser":"OPENID","template_id":"TEMPLATE","page":"index","note":"%s"}', body).encode()
        codes = '"errcode":0,"errmsg":"ok",' if errcode == "first" else ""
        after = ',"errmsg":"ok","errcode":0' if errcode == "last" else ""
        self.reply = self._json("{" + codes + '"msgid":200228332,"note":"%s"' + after + "}", reply).encode()
        self.headers = {
            "User-Agent": "wrk",
            "Authorization": "Basic dXNlcjpwYXNz",
            "Content-Type": "application/json",
            **{f"X-App-{n:02}": f"{n:02} of what apps and meshes add" for n in range(1, headers - 4)},
        }
        self.reply_headers = {f"X-WeChat-{n:02}": f"{n:02} of what a gateway adds" for n in range(1, reply_headers + 1)}
        lines = {"Host": "127.0.0.1", **self.headers, "Content-Length": len(self.body)}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.request = f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + self.body

    def __str__(self):
        return (
            f"a body of {len(self.body)} bytes and {len(self.headers) + 2} headers, a reply of {len(self.reply)} bytes"
            + (f" with {len(self.reply_headers)} headers more" if self.reply_headers else "")
        )

    @staticmethod
    def _json(form, size):
        note = "what most calls and replies are made of; " * (size // 40 + 1)
        whole = form % note[: max(size - len(form) + 2, 0)]
        if len(whole) != size:
            raise SystemExit(f"{size} bytes are too few for the JSON of the bench; {len(whole)} would do")
        return whole


def free_ports(count):
    """Ports that nobody listens on now."""
    streams = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [stream.getsockname()[1] for stream in streams]
    for stream in streams:
        stream.close()
    return ports


# Bytes of a reply in one word of nginx's.
PIECE = 3000
# How long a fetch takes once the token is dead, in seconds: long enough for a thousand calls to be refused meanwhile.
FETCH = 0.5
LUA = "\n".join(
    f"load_module /usr/lib/nginx/modules/{name}.so;" for name in ["ndk_http_module", "ngx_http_lua_module"]
)

PLAIN, TLS, SINK, HERD, HERD_TLS, *PEER_PORTS = free_ports(5 + 2 * 4)

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

    def __init__(self, argv, port=None, env=None, stderr=subprocess.DEVNULL):
        self.started = time.monotonic()
        self.child = subprocess.Popen(
            argv, env=dict(os.environ, **(env or {})), stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
        self.pid, self.port = self.child.pid, port

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
        # Twice: a lone nginx misses a signal that comes just before it waits.
        for _ in range(2):
            if self.child.poll() is not None:
                return
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(5)
            except subprocess.TimeoutExpired:
                pass
        if self.child.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
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

    def __init__(self, shape=None):
        self.shape = shape or Shape()
        self.folder = tempfile.mkdtemp(prefix="wechat-sidecar-bench-")
        os.chmod(self.folder, 0o755)
        self.token = token()
        self.running = []
        try:
            self._certificates()
            with open(self.path("big"), "wb") as big:
                big.write(os.urandom(1 << 20) * 100)
            self.upstream = self.start([which("nginx"), "-c", self._upstream()], PLAIN)
        except BaseException:
            self.stop()
            raise

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, text):
        with open(self.path(name), "w") as file:
            file.write(text)
        return self.path(name)

    def start(self, argv, port=None, wait=True, **more):
        process = Process(argv, port, **more)
        # Before the wait: one that never answers is ended, too.
        self.running.append(process)
        if wait:
            answer(process, port)
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
        """The path of a configuration with one worker that keeps nothing on disk but what it must."""
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
        maps, reply = self._reply()
        return self.nginx(
            "upstream",
            f"""
  map_hash_bucket_size 1024; {maps}
  map $args $delivered {{ "x=1&access_token={self.token}" exactly; default altered; }}
  server {{
    listen 127.0.0.1:{PLAIN} backlog=4096; listen 127.0.0.1:{TLS} ssl backlog=4096;
    ssl_certificate {self.path("cert.pem")}; ssl_certificate_key {self.path("key.pem")}; ssl_protocols TLSv1.3;
    location = /cgi-bin/stable_token {{ return 200 '{issued}'; }}
    location = /cgi-bin/delivered {{ return 200 $delivered; }}
    location = /cgi-bin/media/get {{ alias {self.path("big")}; default_type application/octet-stream; }}
    location = /cgi-bin/media/upload {{ proxy_pass http://127.0.0.1:{SINK}; proxy_request_buffering off; proxy_http_version 1.1; }}
    location / {{ {reply} }}
  }}
  server {{ listen 127.0.0.1:{SINK}; location / {{ client_body_buffer_size 1m; {reply} }} }}""",
        )

    def _reply(self, said=None):
        """The reply to a small call: its maps, in pieces because nginx takes no word of 4 KiB, and how it is sent."""
        text = self.shape.reply.decode()
        maps = "".join(
            f"\n  map $host $reply{at} {{ default '{text[at : at + PIECE]}'; }}" for at in range(0, len(text), PIECE)
        )
        headers = "".join(f"add_header {name} '{value}'; " for name, value in self.shape.reply_headers.items())
        return maps, f'{headers}return 200 "{said or self._replied()}";'

    def _replied(self):
        return "".join(f"${{reply{at}}}" for at in range(0, len(self.shape.reply), PIECE))

    def herd(self):
        """A WeChat that refuses the first token it gave, but below `/cgi-bin/warm/`; a further one takes [`FETCH`]."""
        maps, reply = self._reply("$herd")
        config = self.nginx(
            "herd",
            f"""
  lua_shared_dict herd 1m; {maps}
  map $arg_access_token $herd {{
    ~^old- '{{"errcode":40001,"errmsg":"invalid credential, access_token is invalid or not latest"}}';
    default "{self._replied()}";
  }}
  server {{
    listen 127.0.0.1:{HERD} backlog=4096; listen 127.0.0.1:{HERD_TLS} ssl backlog=4096;
    ssl_certificate {self.path("cert.pem")}; ssl_certificate_key {self.path("key.pem")}; ssl_protocols TLSv1.3;
    location = /fetches {{ content_by_lua_block {{ ngx.print(ngx.shared.herd:get("fetches")) }} }}
    location = /cgi-bin/stable_token {{ content_by_lua_block {{
      ngx.req.read_body()
      local fetches = ngx.shared.herd:incr("fetches", 1, 0)
      if fetches > 1 then ngx.sleep({FETCH}) end
      ngx.print('{{"access_token":"', fetches > 1 and "new-" or "old-", '{self.token[:508]}","expires_in":7200}}')
    }} }}
    location /cgi-bin/warm/ {{ return 200 "{self._replied()}"; }}
    location / {{ {reply} }}
  }}""",
            LUA,
        )
        return self.start([which("nginx"), "-c", config], HERD)


class Peer:
    """One proxy: how it is started, before a plain upstream or one of TLS."""

    def __init__(self, rig, name, port, admin_port):
        self.rig, self.name, self.port, self.admin_port = rig, name, port, admin_port

    def command(self, tls, **more):
        """What starts it, and the environment it needs."""
        return getattr(self, "_" + self.name.replace("-", "_"))(tls, **more)

    def start(self, tls, wait=True, **more):
        argv, env = self.command(tls, **more)
        return self.rig.start(argv, self.port, env=env, wait=wait)

    def _wechat_sidecar(self, tls, log="warn", ports=None):
        plain_port, tls_port = ports or (PLAIN, TLS)
        origin = f"https://{NAME}" if tls else f"http://127.0.0.1:{plain_port}"
        argv = [SIDECAR, "run", "--appid", APPID, "--upstream", origin, "--workers", "1", "--log", log]
        argv += ["--listen", f"127.0.0.1:{self.port}", "--admin-listen", f"127.0.0.1:{self.admin_port}"]
        if tls:
            argv += ["--upstream-address", f"127.0.0.1:{tls_port}", "--upstream-ca-file", self.rig.path("ca.pem")]
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
        return [which("nginx"), "-c", self.rig.nginx("nginx-lua", server, LUA)], {}

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
        client.request("GET", "/cgi-bin/delivered?x=1")
        got = client.getresponse().read().decode()
        if got != "exactly":
            raise SystemExit(f"{self.name} does not deliver the query with the token as it should: {got}")


SIDECAR = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release", "wechat-sidecar")


def peers(rig):
    names = ["nginx", "nginx-lua", "haproxy", "wechat-sidecar"]
    return [Peer(rig, name, *PEER_PORTS[2 * n : 2 * n + 2]) for n, name in enumerate(names)]


def calls(port, count, shape):
    """So many calls on one connection, one after the other."""
    stream = socket.create_connection(("127.0.0.1", port))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(count):
        stream.sendall(shape.request)
        got = b""
        while len(got) < 4 or got.count(b"\r\n\r\n") == 0 or len(got.split(b"\r\n\r\n", 1)[1]) < len(shape.reply):
            piece = stream.recv(65536)
            if not piece:
                raise SystemExit(f"the connection was closed after {got!r}")
            got += piece
        head, _, body = got.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200") or body != shape.reply:
            raise SystemExit(f"not the answer that was sent: {got!r}")
    stream.close()
