"""What every suite here needs: the processes (the simulator, the Python WeChat, the sidecar), the control ports, and
how a check is told.

    rig.py with sim|own [SIDECAR FLAG...] -- COMMAND...

runs a command with a sidecar in front of an upstream and BASE, ADMIN, CONTROL, PLAIN and UPSTREAM in its environment.

A check prints one line that begins with `ok` or `FAIL` (or `todo`, see `known`); run.sh counts them. E2E_BINARY is the binary under test and
E2E_TMP the run's directory: ca.pem, server.pem and server.key are in it, logs/ takes what processes write, received/
what clients got, tokens.txt every token that an upstream issued.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
TMP = os.environ.get("E2E_TMP", "/tmp")
BINARY = os.environ.get("E2E_BINARY", "wechat-sidecar")
APPID = "wx0123456789abcdef"
SECRET_FILE = os.path.join(TMP, "secret.txt")


def check(name, passed, expected="", got=""):
    """One line a check; a failed one says what was expected and what came."""
    if passed:
        print("ok   " + name, flush=True)
    else:
        print("FAIL %s\n     expected: %s\n     got:      %s" % (name, expected, str(got)[:600]), flush=True)
    return passed


def equal(name, got, expected):
    return check(name, got == expected, repr(expected), repr(got))


def known(name, passed, expected, got):
    """A check of what is known not to hold yet: told, and not counted as failed until it has been mended once."""
    if passed:
        check(name, True)
    else:
        print("todo %s\n     expected: %s\n     got:      %s" % (name, expected, str(got)[:600]), flush=True)


def received(client, *pieces):
    """Keeps what a client got, for secrecy.py."""
    with open(os.path.join(TMP, "received", client), "ab") as file:
        for piece in pieces:
            data = piece if isinstance(piece, bytes) else str(piece).encode()
            # A big download is a made-up pattern; only its ends can hold anything of interest.
            file.write((data if len(data) <= 1 << 20 else data[:65536] + data[-65536:]) + b"\n")


class Process:
    """A process that says on its output where it listens."""

    number = 0

    def __init__(self, name, argv, says, env=None):
        Process.number += 1
        self.log = os.path.join(TMP, "logs", "%s-%d-%d" % (name, os.getpid(), Process.number))
        with open(self.log, "wb") as log:
            self.popen = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env)
        self.said = self.wait_for(says)

    def wait_for(self, pattern, within=15):
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            with open(self.log, errors="replace") as log:
                found = re.search(pattern, log.read(), re.S)
            if found:
                return found
            if self.popen.poll() is not None:
                break
            time.sleep(0.02)
        with open(self.log, errors="replace") as log:
            raise SystemExit("FAIL %s\n     expected: output like %s\n     got: %s" % (self.log, pattern, log.read()[-600:]))

    def stop(self, how=signal.SIGTERM, within=15):
        if self.popen.poll() is None:
            self.popen.send_signal(how)
        try:
            return self.popen.wait(within)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Upstream(Process):
    """Either WeChat: an API over TLS and plain, and a control port."""

    def ask(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.control + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.load(reply)

    def fetches(self):
        counts = self.ask("/counts")["fetches"]
        return counts["classic"] + counts["stable"]

    def keep_tokens(self):
        """Writes down every token that was issued, as far as the upstream still knows them."""
        with open(os.path.join(TMP, "tokens.txt"), "a") as file:
            file.writelines(token + "\n" for token in self.tokens())

    def stop(self, *args, **kwargs):
        if self.popen.poll() is None:
            self.keep_tokens()
        return super().stop(*args, **kwargs)


class Simulator(Upstream):
    def __init__(self, listen="127.0.0.1:0"):
        self.ca = os.path.join(TMP, "sim-ca-%d.pem" % time.monotonic_ns())
        with open(SECRET_FILE) as file:
            secret = file.read().strip()
        super().__init__(
            "simulator",
            [BINARY, "simulate", "--listen", listen, "--tls-listen", "127.0.0.1:0", "--control-listen",
             "127.0.0.1:0", "--ca-out", self.ca, "--appid", APPID, "--app-secret", secret],
            r"API +(http://\S+).*?(https://\S+).*?control +(http://\S+)",
        )
        self.plain, self.tls, self.control = self.said.groups()

    def tokens(self):
        found = re.findall(r'access_token=([^"&]+)', json.dumps(self.ask("/seen?limit=4096")))
        return set(found) | set(re.findall(r'"token": ?"([^"]+)"', json.dumps(self.ask("/state"))))


class OwnWeChat(Upstream):
    def __init__(self, tls_port=0):
        self.ca = os.path.join(TMP, "ca.pem")
        super().__init__(
            "own-wechat",
            [sys.executable, os.path.join(HERE, "wechat.py"), "--cert", os.path.join(TMP, "server.pem"), "--key",
             os.path.join(TMP, "server.key"), "--secret-file", SECRET_FILE, "--tls-port", str(tls_port)],
            r"API +(http://\S+).*?(https://\S+).*?control +(http://\S+)",
        )
        self.plain, self.tls, self.control = self.said.groups()

    def tokens(self):
        return self.ask("/tokens")


class Sidecar(Process):
    """The binary under test, at --log trace, because the whole of its output is searched in the end."""

    def __init__(self, upstream, *flags, url=None, ca=None, listen="127.0.0.1:0", ready=True):
        env = {name: value for name, value in os.environ.items() if not name.startswith("WECHAT_SIDECAR_")}
        argv = [BINARY, "run", "--appid", APPID, "--secret-file", SECRET_FILE, "--listen", listen, "--admin-listen",
                "127.0.0.1:0", "--upstream", url or upstream.tls, "--log", "trace", *flags]
        # fds() looks into /proc, which is otherwise root's with CAP_SYS_PTRACE alone.
        argv += ["--core-dumps", "on"]
        if (url or upstream.tls).startswith("https"):
            argv += ["--upstream-ca-file", ca or upstream.ca]
        super().__init__("sidecar", argv, r"listen=(\S+) admin=(\S+)", env)
        self.address, self.admin = self.said.groups()
        self.base = "http://" + self.address
        if ready:
            subprocess.run([BINARY, "wait", "--admin-listen", self.admin, "--timeout", "15s"], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def fds(self):
        return len(os.listdir("/proc/%d/fd" % self.popen.pid))

    def rss_kib(self):
        with open("/proc/%d/status" % self.popen.pid) as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1))


class Rotator:
    """Voids the token every 100 ms for some seconds: by turns it runs out (42001) and someone else fetches (40001).
    A process of its own, because 200 threads of clients would hold up a thread.

    A machine too busy for 100 ms gets more: the next token dies once 30 calls were accepted with the one before. That
    keeps two tokens from dying under one call, which no sidecar could hide."""

    def __init__(self, upstream, seconds, every=0.1):
        argv = [sys.executable, os.path.abspath(__file__), "rotate", type(upstream).__name__, upstream.control, str(seconds), str(every)]
        self.popen = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    def finish(self):
        """How often it did."""
        return int(self.popen.communicate(timeout=30)[0])


def rotate(kind, control, seconds, every):
    which = {"Simulator": Simulator, "OwnWeChat": OwnWeChat}[kind]
    upstream = which.__new__(which)  # the process is another's; only its control port is wanted
    upstream.control = control
    begun, rounds = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        upstream.ask("/rotate" if rounds % 2 else "/expire", {})
        rounds += 1
        accepted = upstream.ask("/counts")["accepted"]
        if rounds % 10 == 0:
            upstream.keep_tokens()
        time.sleep(every)
        while upstream.ask("/counts")["accepted"] < accepted + 30 and time.monotonic() - begun < seconds:
            time.sleep(0.02)
    print(rounds)


def run_with(kind, flags, command):
    with {"sim": Simulator, "own": OwnWeChat}[kind]() as upstream, Sidecar(upstream, *flags) as sidecar:
        env = dict(os.environ, BASE=sidecar.base, ADMIN="http://" + sidecar.admin, CONTROL=upstream.control,
                   PLAIN=upstream.plain, UPSTREAM=kind)
        return subprocess.run(command, env=env).returncode


if __name__ == "__main__":
    if sys.argv[1:2] == ["rotate"]:
        rotate(sys.argv[2], sys.argv[3], float(sys.argv[4]), float(sys.argv[5]))
        sys.exit()
    if len(sys.argv) < 4 or sys.argv[1] != "with":
        raise SystemExit(__doc__)
    split = sys.argv.index("--")
    sys.exit(run_with(sys.argv[2], sys.argv[3:split], sys.argv[split + 1 :]))
