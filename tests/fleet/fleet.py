"""What every suite here needs: a Redis that can be hurt, a fleet of sidecar processes, and a load that keeps a ledger.

It stands on ../clients/rig.py (the simulator, processes, how a check is told). A fleet calls plain HTTP on loopback:
what is at stake here is who fetches when, not TLS.
"""

import collections
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "clients"))
import rig  # noqa: E402
from rig import check, equal  # noqa: E402,F401

SEND = "/cgi-bin/message/custom/send"
BODY = b'{"touser":"oAbc","text":{"content":"fleet"}}'
# What takes longer hangs. The machine may be slow; nothing here is judged by how fast it was.
PATIENCE = 60


def until(what, done, within=PATIENCE):
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        got = done()
        if got:
            return got
        time.sleep(0.02)
    raise SystemExit("FAIL not within %d s: %s" % (within, what))


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Redis:
    """A redis-server of Debian's on a free port, which keeps nothing on disk."""

    def __init__(self, *flags, port=None):
        if not shutil.which("redis-server"):
            raise SystemExit("FAIL redis-server is missing; install it: apt-get install redis-server")
        self.port, self.flags = port or free_port(), flags
        self.dir = os.path.join(rig.TMP, "redis-%d" % self.port)
        os.makedirs(self.dir, exist_ok=True)
        self.url = "redis://127.0.0.1:%d" % self.port
        self.start()

    def start(self):
        argv = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                "--dir", self.dir, "--logfile", os.path.join(rig.TMP, "logs", "redis-%d" % self.port), *self.flags]
        self.popen = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until("redis answers", self.answers)

    def answers(self):
        with contextlib.suppress(OSError):
            return self.ask("PING") == "PONG"

    def ask(self, *words):
        """One command, and its answer as redis-cli would tell it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
            connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
            reader = connection.makefile("rb")
            return self.read(reader)

    def read(self, reader):
        line = reader.readline().rstrip(b"\r\n")
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            return None if rest == b"-1" else reader.read(int(rest) + 2)[:-2].decode()
        if kind == b"*":
            return [self.read(reader) for _ in range(int(rest))]
        return int(rest) if kind == b":" else rest.decode()

    def kill(self):
        self.popen.kill()
        self.popen.wait()

    def restart(self):
        """As after a crash: it has forgotten everything."""
        self.kill()
        self.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


class Sidecar(rig.Process):
    """One of the fleet."""

    def __init__(self, name, flags, env=None, admin="127.0.0.1:0"):
        clean = {key: value for key, value in os.environ.items() if not key.startswith("WECHAT_SIDECAR_")}
        argv = [rig.BINARY, "run", "--listen", "127.0.0.1:0", "--admin-listen", admin, "--workers", "1",
                "--token-wait", "20s", "--log", "debug,access=info", *flags]
        super().__init__(name, argv, r"listen=(\S+) admin=(\S+)", {**clean, **(env or {})})
        self.address, self.admin = self.said.groups()

    def readiness(self):
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(self.admin, timeout=10)
            connection.request("GET", "/readyz")
            return json.loads(connection.getresponse().read())
        return {"ready": False, "accounts": []}

    def fingerprint(self):
        accounts = self.readiness()["accounts"]
        return accounts[0]["token"] if accounts else None

    def call(self, timeout=PATIENCE):
        """One message: what the app got."""
        connection = http.client.HTTPConnection(self.address, timeout=timeout)
        connection.request("POST", SEND, BODY, {"x-call-id": uuid.uuid4().hex})
        reply = connection.getresponse()
        text = reply.read()
        rig.received("fleet", reply.headers, text)
        return reply.status, reply.headers, text

    def kill(self):
        self.popen.kill()
        self.popen.wait()

    def log_text(self):
        with open(self.log, errors="replace") as log:
            return log.read()


def direct(wechat, *flags):
    """The flags of a sidecar that has the secret."""
    return ["--appid", rig.APPID, "--secret-file", rig.SECRET_FILE, "--upstream", wechat.plain, *flags]


class Fleet:
    def __init__(self, flags, size, env=lambda n: None, name="sidecar"):
        self.sidecars = []
        for n in range(size):
            own = flags(n) if callable(flags) else flags
            self.sidecars.append(Sidecar("%s-%d" % (name, n), own, env(n)))
        until("all are ready", lambda: all(s.readiness()["ready"] for s in self.sidecars))

    def fingerprints(self):
        return {sidecar.fingerprint() for sidecar in self.sidecars}

    def agreed(self, but=None):
        """Waits until all serve one token, another than `but`, and returns its fingerprint."""

        def one():
            found = self.fingerprints()
            return found.pop() if len(found) == 1 and None not in found and but not in found else None

        return until("all serve the same token", one)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for sidecar in self.sidecars:
            sidecar.popen.send_signal(signal.SIGTERM)
        for sidecar in self.sidecars:
            sidecar.stop()


class Load:
    """Apps beside their sidecars, calling all the time. Every answer is written down."""

    def __init__(self, sidecars, each=1, pause=0.02):
        self.sidecars, self.pause = sidecars, pause
        self.lock, self.stopped = threading.Lock(), threading.Event()
        self.good, self.twice, self.bad = collections.Counter(), 0, collections.Counter()
        # Processes would be fairer and cost too much: one interpreter carries all apps.
        self.threads = [threading.Thread(target=self.run, args=(s,), daemon=True) for s in sidecars for _ in range(each)]

    def run(self, sidecar):
        connection = None
        while not self.stopped.is_set():
            connection = connection or http.client.HTTPConnection(sidecar.address, timeout=PATIENCE)
            try:
                connection.request("POST", SEND, BODY, {"x-call-id": uuid.uuid4().hex})
                reply = connection.getresponse()
                text, twice = reply.read(), reply.headers.get("x-wechat-sidecar-attempts")
                good = reply.status == 200 and b'"errcode":0' in text.replace(b" ", b"")
                with self.lock:
                    self.twice += twice is not None
                    if good:
                        self.good[sidecar] += 1
                        if self.good[sidecar] < 20:
                            rig.received("fleet", reply.headers, text)
                    else:
                        self.bad["%d, attempts %s: %s" % (reply.status, twice or 1, text[:200])] += 1
            except (OSError, http.client.HTTPException) as error:
                connection = None
                with self.lock:
                    self.bad["%s %s" % (type(error).__name__, error)] += 1
            self.stopped.wait(self.pause)

    def calls(self):
        with self.lock:
            return sum(self.good.values()) + sum(self.bad.values())

    def until_all_called(self, times=2):
        """Until each sidecar has carried out so many more calls."""
        with self.lock:
            before = dict(self.good)
        until("every app is served", lambda: all(self.good[s] >= before.get(s, 0) + times for s in self.sidecars))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        self.until_all_called(1)
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for thread in self.threads:
            thread.join(PATIENCE)


def fetches(wechat):
    counts = wechat.ask("/counts")["fetches"]
    return counts["classic"] + counts["stable"]


def kill_token(wechat, n, kind="classic"):
    """By turns: it runs out, or someone else fetches and WeChat forgets the one before."""
    if n % 2:
        wechat.ask("/rotate", {"kind": kind, "at_once": True})
    else:
        wechat.ask("/expire", {})


def verdict(name, wechat, load):
    """What holds whatever happened: no app noticed, and WeChat carried out each call once."""
    counts = wechat.ask("/counts")
    equal(name + ": no call of %d fails" % load.calls(), dict(load.bad.most_common(5)), {})
    check(name + ": none was sent a third time", counts["max_sends_of_a_call"] <= 2, 2, counts["max_sends_of_a_call"])
    check(name + ": none was carried out twice", counts["max_accepts_of_a_call"] <= 1, 1, counts["max_accepts_of_a_call"])
    equal(name + ": nothing was forced", counts["fetches"]["forced"], 0)
    wechat.keep_tokens()
