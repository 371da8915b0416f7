"""What the suites under fire share: the binary as it is deployed (release, little logging), what it costs, and a load
that does nothing but send and count.

A check prints one line that begins with `ok` or `FAIL`, as in tests/clients, whose rig this stands on; the Redis is that of
tests/fleet."""

import os
import re
import resource
import select
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

for folder in ("clients", "fleet"):
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", folder))

from fleet import Redis  # noqa: E402, F401
from rig import APPID, BINARY, SECRET_FILE, Process, Simulator, check, equal  # noqa: E402, F401

SEND = "/cgi-bin/message/custom/send"
# Another address of loopback, so that the two ports can be told apart.
ADMIN_HOST = "127.0.0.2"
MESSAGE = b'{"touser":"oAbc","msgtype":"text","text":{"content":"hello"}}'


def more_files(wanted):
    """Raises the limit on open files as far as it goes; how many there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    return max(soft, most)


class Deployed(Process):
    """A sidecar as one runs it."""

    def __init__(self, upstream, *flags, listen="127.0.0.1:0", url=None, ready=True):
        env = {name: value for name, value in os.environ.items() if not name.startswith("WECHAT_SIDECAR_")}
        url = url or upstream.plain
        argv = [BINARY, "run", "--appid", APPID, "--secret-file", SECRET_FILE, "--listen", listen, "--admin-listen",
                ADMIN_HOST + ":0", "--upstream", url, *flags]
        if url.startswith("https"):
            argv += ["--upstream-ca-file", upstream.ca]
        super().__init__("sidecar", argv, "", env)
        self.address, self.admin = self.listening()
        if ready:
            subprocess.run([BINARY, "wait", "--admin-listen", self.admin, "--timeout", "15s"], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def listening(self):
        """Where it listens, from the kernel: at this log level it does not say so. Apps, then probes."""
        until = time.monotonic() + 15
        while time.monotonic() < until and self.alive():
            found = {}
            try:
                links = os.listdir("/proc/%d/fd" % self.popen.pid)
                inodes = {os.readlink("/proc/%d/fd/%s" % (self.popen.pid, fd))[8:-1] for fd in links}
            except OSError:
                continue
            with open("/proc/net/tcp") as table:
                for line in table.readlines()[1:]:
                    fields = line.split()
                    if fields[3] == "0A" and fields[9] in inodes:
                        host, port = fields[1].split(":")
                        host = ".".join(str(byte) for byte in reversed(bytes.fromhex(host)))
                        found[host] = "%s:%d" % (host, int(port, 16))
            if len(found) == 2:
                return found["127.0.0.1"], found[ADMIN_HOST]
            time.sleep(0.002)
        with open(self.log, errors="replace") as log:
            raise SystemExit("FAIL the sidecar does not listen: " + log.read()[-600:])

    def status(self, what):
        with open("/proc/%d/status" % self.popen.pid) as status:
            return int(re.search(what + r":\s+(\d+)", status.read()).group(1))

    def cost(self):
        """Open files, threads, resident memory in KiB."""
        return len(os.listdir("/proc/%d/fd" % self.popen.pid)), self.status("Threads"), self.status("VmRSS")

    def alive(self):
        return self.popen.poll() is None


def request(call_id=None, close=False):
    head = "POST %s HTTP/1.1\r\nHost: api.weixin.qq.com\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % (
        SEND, len(MESSAGE))
    if call_id:
        head += "x-call-id: %s\r\n" % call_id
    return head.encode() + (b"Connection: close\r\n" if close else b"") + b"\r\n" + MESSAGE


def connect(address):
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=20)


def call(address, data=None, timeout=20):
    """One call on a connection of its own: status and everything that came; 0 when nothing did."""
    with connect(address) as sock:
        sock.settimeout(timeout)
        try:
            sock.sendall(data or request(close=True))
            got = b""
            while piece := sock.recv(65536):
                got += piece
        except OSError:
            return 0, b""
    found = re.match(rb"HTTP/1.[01] (\d+)", got)
    return (int(found.group(1)) if found else 0), got


class Load:
    """Connections that each send one call after the other, as fast as they are answered."""

    LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.I)

    def __init__(self, address, connections):
        host, port = address.rsplit(":", 1)
        self.target, self.wanted = (host, int(port)), connections
        self.poll, self.conns = select.epoll(), {}
        self.good = self.shed = self.told = self.bad = self.broken = 0
        self.answered = set()
        self.strange = {}

    def open(self):
        """A few more, but not while many wait for their first answer: what is measured is not the queue of a socket."""
        for _ in range(min(100, self.wanted - len(self.conns), 500 - len(self.conns) + len(self.answered))):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(self.target)
            self.conns[sock.fileno()] = [sock, b""]
            self.poll.register(sock.fileno(), select.EPOLLOUT | select.EPOLLIN)

    def close(self, fd):
        self.poll.unregister(fd)
        self.answered.discard(fd)
        self.conns.pop(fd)[0].close()

    def run(self, seconds, data=None):
        """Counts for so long: calls that were carried out, in a second."""
        data = data or request()
        until, good = time.monotonic() + seconds, self.good
        while time.monotonic() < until:
            self.open()
            for fd, event in self.poll.poll(0.05, 512):
                sock, unread = self.conns[fd]
                try:
                    if event & select.EPOLLOUT:
                        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                            raise OSError
                        self.poll.modify(fd, select.EPOLLIN)
                        sock.send(data)
                        continue
                    piece = sock.recv(65536)
                    if not piece:
                        raise OSError
                except BlockingIOError:
                    continue
                except OSError:
                    self.broken += 1
                    self.close(fd)
                    continue
                unread += piece
                end = unread.find(b"\r\n\r\n")
                length = self.LENGTH.search(unread, 0, end + 2) if end >= 0 else None
                if end < 0 or not length or len(unread) < end + 4 + int(length.group(1)):
                    self.conns[fd][1] = unread
                    continue
                self.conns[fd][1] = b""
                self.answered.add(fd)
                self.count(unread[9:12], unread)
                try:
                    sock.send(data)
                except OSError:
                    self.broken += 1
                    self.close(fd)
        return (self.good - good) / seconds

    def count(self, status, reply):
        if status == b"200" and b'"errcode":0' in reply:
            self.good += 1
        elif status in (b"503", b"429") and b"\r\nretry-after:" in reply.lower():
            self.shed += 1
        elif status[:1] == b"5" and b"\r\nx-wechat-sidecar-error:" in reply.lower():
            self.told += 1
        else:
            self.bad += 1
            key = (status + b" " + reply.split(b"\r\n\r\n", 1)[-1][:160]).decode("latin-1")
            self.strange[key] = self.strange.get(key, 0) + 1

    def fill(self, patience):
        """Until all connections are there and have been answered once."""
        until = time.monotonic() + patience
        while len(self.answered) < self.wanted and time.monotonic() < until:
            self.run(0.5)

    def end(self):
        for fd in list(self.conns):
            self.close(fd)
        self.poll.close()


def port_of(url):
    return urlsplit(url).port
