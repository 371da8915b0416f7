"""What the suites under fire share: the binary as it is deployed (release, little logging), what it costs, and a load
that does nothing but send and count.

A check prints one line that begins with `ok` or `FAIL`, as in tests/clients, whose rig this stands on."""

import os
import re
import resource
import select
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "clients"))

from rig import APPID, BINARY, SECRET_FILE, Process, Simulator, check, equal  # noqa: E402, F401

SEND = "/cgi-bin/message/custom/send"
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
                "127.0.0.1:0", "--upstream", url, *flags]
        if url.startswith("https"):
            argv += ["--upstream-ca-file", upstream.ca]
        super().__init__("sidecar", argv, r"listen=(\S+) admin=(\S+)", env)
        self.address, self.admin = self.said.groups()
        if ready:
            subprocess.run([BINARY, "wait", "--admin-listen", self.admin, "--timeout", "15s"], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

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
        self.good = self.shed = self.bad = self.broken = 0
        self.strange = {}

    def open(self, batch=200):
        for _ in range(min(batch, self.wanted - len(self.conns))):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(self.target)
            self.conns[sock.fileno()] = [sock, b""]
            self.poll.register(sock.fileno(), select.EPOLLOUT | select.EPOLLIN)

    def close(self, fd):
        self.poll.unregister(fd)
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
        else:
            self.bad += 1
            key = (status + b" " + reply.split(b"\r\n\r\n", 1)[-1][:160]).decode("latin-1")
            self.strange[key] = self.strange.get(key, 0) + 1

    def end(self):
        for fd in list(self.conns):
            self.close(fd)
        self.poll.close()


def port_of(url):
    return urlsplit(url).port
