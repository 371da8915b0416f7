"""Runs the recipes of examples/sdks and judges them: check.py BINARY WORK WAYS

WORK holds a folder for each recipe, with its packages. Prints a line for each check, then `N passed, M failed`.
"""

import fcntl
import hashlib
import http.client
import json
import os
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
APPID = "wx0123456789abcdef"
DUMMY = "not-a-secret"
PLACEHOLDER = "WECHAT-SIDECAR_" + APPID
TOKEN_CODES = ("40001", "40014", "42001")
# httpx, which co-wechat-api uses, waits no longer than 3 s.
LONGEST = 3.0
# Fetches that one interface may cost that refuses every token, however often an SDK comes back.
FEW = 6
FETCHES = 10_000

COMMON = [
    "/cgi-bin/user/get",
    "/cgi-bin/user/info",
    "/cgi-bin/menu/create",
    "/cgi-bin/message/template/send",
    "/cgi-bin/message/custom/send",
    "/cgi-bin/media/upload",
    "/cgi-bin/media/get",
    "/cgi-bin/qrcode/create",
]
DEVICE = ["/device/create_qrcode", "/device/get_stat"]
MINI = ["/wxa/getwxacodeunlimit", "/sns/jscode2session"]
WEB = ["/sns/oauth2/access_token", "/sns/userinfo"]
# How WeChat writes that a token is bad: every way it has been seen to.
SHAPES = ["plain", "string", "last", "spaced", "control"]
# The call after this one is a device interface's, and these nest their errcode in `base_resp`.
BEFORE_NESTED = "device"
# What reaches WeChat, and whether ids above 2^53 survive the SDK.
RECIPES = {
    "wechatpy": {"paths": COMMON + DEVICE + MINI + WEB + ["/sns/oauth2/refresh_token"], "exact": True},
    "werobot": {"paths": COMMON, "exact": True},
    "co-wechat-api": {"paths": COMMON + DEVICE + MINI, "exact": True},
    "node-easywechat": {"paths": COMMON + DEVICE + MINI + WEB, "exact": False},
}
# The same app with an HTTP client that does not CONNECT: it asks the proxy for https://... in clear, and meets no TLS.
OLD_AXIOS = "node-easywechat-old-axios"
# How the apps find the sidecar: what stands in their environment. Without WECHAT_BASE_URL they are the apps they were.
WAYS = {
    "base_url": lambda world: {"WECHAT_BASE_URL": world.sidecar},
    "http_proxy": lambda world: {"WECHAT_BASE_URL": "http://api.weixin.qq.com", "HTTP_PROXY": world.sidecar},
    "https_proxy": lambda world: {"HTTPS_PROXY": world.sidecar, **world.trust},
    # As the host itself: steps.py and steps.js lead the name there, in their own process.
    "tls_listen": lambda world: {"TEST_HOST_AT": world.tls, **world.trust},
    # As the host itself, by a hosts file and at port 443: run.sh makes a place for it.
    "hosts_file": lambda world: {"TEST_BY_HOSTS": "yes", **world.trust},
}
TLS_LISTEN = {"hosts_file": "127.0.0.1:443"}
# httpx, which it uses, does not look for a proxy.
WITHOUT_PROXY = "co-wechat-api"


class Failed(Exception):
    """A check did not hold."""


def hold(condition, text):
    if not condition:
        raise Failed(text)


def call(url, body=None):
    """A request of this harness's own: the parsed JSON, or the bytes."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=30) as reply:
        answer = reply.read()
        return json.loads(answer) if "json" in reply.headers.get("content-type", "") else answer


class World:
    """A simulated WeChat and a sidecar in front of it, with a secret nobody else knows."""

    def __init__(self, binary, folder, tls_listen="127.0.0.1:0", flags=()):
        self.secret = secrets.token_hex(16)
        self.tokens = set()
        self.processes = []
        self.log = folder / "sidecar.log"
        self.log.unlink(missing_ok=True)
        env = {"PATH": os.environ.get("PATH", "")}
        try:
            self._start(binary, env, folder.parent / "ca", ["--tls-listen", tls_listen, *flags])
        except BaseException:
            self.stop()
            raise

    def _start(self, binary, env, ca, flags):
        subprocess.run([binary, "ca", "--dir", ca], env=env, check=True, stdout=subprocess.DEVNULL)
        # Each runtime reads its own; these three are what the SDKs' runtimes have.
        names = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS")
        self.trust = dict.fromkeys(names, str(ca / "ca.pem"))
        simulator = subprocess.Popen(
            [binary, "simulate", "--listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0"]
            + ["--appid", APPID, "--app-secret", self.secret, "--log", "error"],
            env=env, stdout=subprocess.PIPE, text=True,
        )
        self.processes.append(simulator)
        said = {}
        for line in simulator.stdout:
            words = line.split()
            if len(words) > 1 and words[1].startswith("http://"):
                said[words[0]] = words[1]
            if "wechat-sidecar run" in line:
                break
        hold({"API", "control"} <= said.keys(), "the simulator did not start")
        self.wechat, self.control = said["API"], said["control"]
        with open(self.log, "w") as log:
            self.processes.append(subprocess.Popen(
                [binary, "run", "--appid", APPID, "--upstream", self.wechat, "--listen", "127.0.0.1:0"]
                + ["--admin-listen", "127.0.0.1:0", "--log", "debug", "--log-format", "json"]
                + ["--ca-dir", ca, *flags],
                env={**env, "WECHAT_SIDECAR_SECRET": self.secret}, stderr=log,
            ))
        for _ in range(200):
            lines = [line for line in self.log.read_text().splitlines() if '"serving' in line]
            if len(lines) > 1:
                break
            time.sleep(0.05)
        hold(len(lines) > 1, f"the sidecar did not start: {self.log.read_text()}")
        serving = {**json.loads(lines[0]), **json.loads(lines[1])}
        self.sidecar, self.admin, self.tls = "http://" + serving["listen"], serving["admin"], serving["tls_listen"]
        subprocess.run(
            [binary, "wait", "--admin-listen", self.admin, "--timeout", "20s"],
            env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )

    def lever(self, name, **arguments):
        call(self.control + name, arguments)

    def counts(self):
        return call(self.control + "/counts")

    def fetches(self):
        fetches = self.counts()["fetches"]
        return fetches["classic"] + fetches["stable"]

    def live(self):
        """The tokens that work; every one ever seen is remembered."""
        accounts = call(self.control + "/state")["accounts"]
        live = [live["token"] for account in accounts for live in account["live_tokens"]]
        self.tokens.update(live)
        return live

    def token(self):
        """A token that works, by a fetch like the sidecar's."""
        asked = {"grant_type": "client_credential", "appid": APPID, "secret": self.secret}
        return call(self.wechat + "/cgi-bin/stable_token", asked)["access_token"]

    def kill(self, how):
        self.live()
        self.lever(how)
        self.live()

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class App:
    """A recipe in a process of its own, with an environment and a home of its own."""

    def __init__(self, folder, env):
        self.home = folder / "home"
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir()
        (self.home / "picture.jpg").write_bytes(b"\xff\xd8\xff\xe0" + secrets.token_bytes(300_000))
        self.picture = (self.home / "picture.jpg").read_bytes()
        # Python without what the machine has installed: the recipe has to name all it needs.
        python = (folder / "requirements.txt").exists()
        runner = [sys.executable, "-B", "-I", "-S", str(HERE / "steps.py")] if python else ["node", str(HERE / "steps.js")]
        home = str(self.home)
        self.errors = open(self.home / "stderr.txt", "w+")
        self.process = subprocess.Popen(
            runner + [str(folder), "picture.jpg"], cwd=home, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            env={"PATH": os.environ.get("PATH", ""), "HOME": home, "TMPDIR": home, "WECHAT_APPID": APPID, **env},
        )

    def next(self, patience=60):
        """What the app says next."""
        ready, _, _ = select.select([self.process.stdout], [], [], patience)
        hold(ready, f"the app said nothing for {patience} s")
        line = self.process.stdout.readline()
        hold(line, f"the app ended: {self.complaint()}")
        return json.loads(line)

    def go_on(self):
        self.process.stdin.write("\n")

    def complaint(self):
        self.errors.flush()
        return (self.home / "stderr.txt").read_text()[-2000:]

    def memory(self):
        """The readable memory of the process, in pieces that overlap."""
        with open(f"/proc/{self.process.pid}/maps") as maps, open(f"/proc/{self.process.pid}/mem", "rb", 0) as memory:
            for line in maps:
                words = line.split()
                if "r" not in words[1] or (len(words) > 5 and words[5].startswith("[v")):
                    continue
                start, end = (int(address, 16) for address in words[0].split("-"))
                tail = b""
                while start < end:
                    try:
                        memory.seek(start)
                        piece = memory.read(min(4 << 20, end - start))
                    except (OSError, ValueError):
                        break  # A mapping of a device, or gone.
                    if not piece:
                        break
                    yield tail + piece
                    tail = piece[-1024:]
                    start += len(piece)

    def files(self):
        for path in self.home.rglob("*"):
            if path.is_file() and path.name != "picture.jpg":
                yield path, path.read_bytes() + b"\n" + path.name.encode()

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.errors.close()


def good(said):
    """Whether the app got what it called for."""
    hold("error" not in said, f"the app failed: {said.get('error')}")
    result = said["result"]
    hold(isinstance(result, dict), f"{said['step']}: no object but {result!r}")
    for told in (result, result.get("base_resp", {})):
        hold(told.get("errcode", 0) in (0, "0"), f"{said['step']}: {result}")
    return result


def day(binary, folder, way, recipe, trusts=True):
    """A day's calls, with the token dying after each. Returns a sentence."""
    world = World(binary, folder, *TLS_LISTEN.get(way, "").split())
    app = None
    try:
        env = WAYS[way](world)
        app = App(folder, env if trusts else {name: env[name] for name in env.keys() - world.trust.keys()})
        results, kills, slowest = [], 0, 0.0
        while True:
            began = time.monotonic()
            said = app.next()
            if "done" in said:
                break
            # The first call is slowed by what the app imports.
            if results:
                slowest = max(slowest, time.monotonic() - began)
            result = good(said)
            results.append((said["step"], result))
            world.kill("/expire" if kills % 2 else "/rotate")
            shape = "nested" if said["step"] == BEFORE_NESTED else SHAPES[kills % len(SHAPES)]
            world.lever("/refusal_shape", shape=shape)
            kills += 1
            app.go_on()
        world.live()
        counts = world.counts()
        seen = call(world.control + "/seen?limit=4096")

        judge_results(world, app, results, seen, recipe)
        judge_upstream(world, counts, seen, kills, recipe)
        judge_app(world, app)
        hold(slowest < LONGEST, f"a call took {slowest:.1f} s")
        refused = sum(counts["refusals"].get(code, 0) for code in TOKEN_CODES)
        fetches = counts["fetches"]["stable"]
        return f"{len(results)} calls, {refused} refused upstream and healed, {fetches} fetches, slowest {slowest:.2f} s"
    except Exception as error:
        raise Failed(f"{error}\n{app.complaint() if app else ''}\n{tail(world)}") from error
    finally:
        if app:
            app.stop()
        world.stop()


def tail(world):
    return "\n".join(world.log.read_text().splitlines()[-6:])


def judge_results(world, app, results, seen, recipe):
    by_name = dict(results)
    sha256 = hashlib.sha256(app.picture).hexdigest()
    hold(by_name["download"] == {"length": len(app.picture), "sha256": sha256}, "the SDK downloads something else")
    media_id = by_name["upload"]["media_id"]
    token = world.token()
    stored = call(f"{world.wechat}/cgi-bin/media/get?access_token={token}&media_id={media_id}")
    hold(stored == app.picture, f"WeChat stored {len(stored)} other bytes")
    uploads = [(s["body_length"], s["body_sha256"]) for s in seen if s["target"].startswith("/cgi-bin/media/upload")]
    hold(len(uploads) > 1, "the upload was not sent again, so this proves nothing")
    hold(len(set(uploads)) == 1 and uploads[0][0] > len(app.picture), f"uploads differ: {uploads}")
    ids = [int(result["msgid"]) for name, result in results if name == "template"]
    hold(len(ids) == 2, f"templates: {ids}")
    if recipe["exact"]:
        hold(ids[1] == 3_333_330_111_111_111_168 + 2, f"a message id was bent: {ids}")
    if "wxacode" in by_name:
        hold(by_name["wxacode"]["length"] > 20, "the QR code is empty")
    if "login" in by_name:
        hold(by_name["login"]["openid"] and by_name["login"]["session_key"], "the login brings no session")


def judge_upstream(world, counts, seen, kills, recipe):
    for name in ("placeholders", "unknown_tokens", "duplicate_tokens", "chunked_refused", "broken_off"):
        hold(counts[name] == 0, f"{name}: {counts[name]}")
    hold(set(counts["refusals"]) <= set(TOKEN_CODES), f"WeChat refused: {counts['refusals']}")
    refused = sum(counts["refusals"].values())
    hold(refused >= len(COMMON), f"only {refused} calls met a dead token")
    fetches = counts["fetches"]
    hold(fetches["classic"] == 0 and fetches["forced"] == 0, f"the SDK's own fetch got through: {fetches}")
    hold(fetches["stable"] <= kills + 1, f"{fetches['stable']} fetches for {kills} dead tokens")
    hold(not fetches["refusals"], f"WeChat refused a fetch: {fetches}")
    missing = [path for path in recipe["paths"] if not counts["calls"].get(path)]
    hold(not missing, f"these never reached WeChat: {missing}")
    for request in seen:
        text = json.dumps(request)
        for word in (DUMMY, "WECHAT-SIDECAR"):
            hold(word not in text, f"{word} reached WeChat: {text[:500]}")
        proxy = [name for name, _ in request["headers"] if name.startswith("proxy-")]
        hold(not proxy and request["target"].startswith("/"), f"what is for a proxy reached WeChat: {text[:500]}")
        path = request["target"].split("?")[0]
        if path == "/sns/jscode2session":
            hold(world.secret in text and "access_token" not in request["target"], f"login: {request['target']}")
        if path == "/sns/userinfo":
            hold(not any(token in text for token in world.tokens), "a user's call carried the app's token")


def judge_app(world, app):
    """The app holds the placeholder, and neither a real token nor the secret."""
    hold(len(world.tokens) > 5, f"only {len(world.tokens)} real tokens are known")
    real = {token.encode() for token in world.tokens} | {world.secret.encode()}
    for path, content in app.files():
        hold(not any(word in content for word in real), f"{path.name} holds a real credential")
    words = [(word, form) for word in real for form in (word, word.decode().encode("utf-16-le"))]
    found = False
    for piece in app.memory():
        found = found or PLACEHOLDER.encode() in piece
        hold(not any(form in piece for _, form in words), "the app's memory holds a real credential")
    hold(found, "the placeholder is not in the app's memory, so looking there proves nothing")
    log = world.log.read_bytes()
    hold(not any(word in log for word in real), "the sidecar's log holds a real credential")


def refused(binary, folder, way):
    """An interface that refuses every token, and an SDK that may come back without end. Returns a sentence."""
    world = World(binary, folder, *TLS_LISTEN.get(way, "").split())
    app = None
    try:
        world.lever("/refuse", path="/cgi-bin/user/get", errcode=40001)
        before = world.fetches()
        app = App(folder, WAYS[way](world))
        said = app.next(120)
        result = said.get("error") or json.dumps(said["result"])
        hold("error" in said or said["result"].get("errcode") == 40001, f"the refusal was hidden: {said}")
        counts, cost = world.counts(), world.fetches() - before
        calls = counts["calls"]["/cgi-bin/user/get"]
        hold(cost <= FEW, f"it cost {cost} fetches in {calls} calls")
        hold(counts["fetches"]["classic"] == 0 and counts["unknown_tokens"] == 0, f"{counts}")
        world.lever("/reset_levers")
        reply = call(world.sidecar + "/cgi-bin/user/get")
        hold(reply.get("total") == 2, f"calls do not succeed again: {reply}")
        return f"{calls} calls upstream, {cost} fetches; the app saw {result.split(':')[0]!r}"
    except Exception as error:
        raise Failed(f"{error}\n{app.complaint() if app else ''}\n{tail(world)}") from error
    finally:
        if app:
            app.stop()
        world.stop()


def fetches(binary, folder):
    """SDKs that fetch a token for every call cost nothing. Returns a sentence."""
    world = World(binary, folder)
    try:
        before, slowest, answers, began = world.fetches(), 0.0, set(), time.monotonic()
        connection = http.client.HTTPConnection(world.sidecar.removeprefix("http://"), timeout=10)
        ask = {"grant_type": "client_credential", "appid": APPID, "secret": DUMMY}
        for n in range(FETCHES):
            started = time.monotonic()
            if n % 2:
                body = json.dumps({**ask, "force_refresh": n % 4 == 1})
                connection.request("POST", "/cgi-bin/stable_token", body)
            else:
                query = f"grant_type=client_credential&appid={APPID}&secret={DUMMY}"
                connection.request("GET", f"/cgi-bin/token?{query}")
            reply = connection.getresponse()
            kind = reply.headers["content-type"]
            hold(reply.status == 200 and kind == "application/json", f"{reply.status} {kind}")
            answers.add(reply.read())
            slowest = max(slowest, time.monotonic() - started)
        connection.close()
        hold(len(answers) == 1, f"several answers: {answers}")
        answer = json.loads(answers.pop())
        hold(answer["access_token"].startswith(PLACEHOLDER) and answer["expires_in"] == 7200, f"{answer}")
        cost, calls = world.fetches() - before, sum(world.counts()["calls"].values())
        hold(cost == 0 and calls == 0, f"they cost {cost} fetches and {calls} calls")
        hold(slowest < LONGEST, f"one took {slowest:.1f} s")
        took = time.monotonic() - began
        return f"{FETCHES} token fetches, 0 upstream, {took:.1f} s, the slowest {slowest * 1000:.0f} ms"
    finally:
        world.stop()


def without(binary, folder):
    """Without a sidecar the same app must fail: the checks can. Returns a sentence."""
    world = World(binary, folder)
    app = None
    try:
        app = App(folder, {"WECHAT_BASE_URL": world.wechat})
        said = app.next()
        hold("error" in said and "40125" in said["error"], f"it said {said}")
        return "refused with 40125"
    finally:
        if app:
            app.stop()
        world.stop()


def ignores(binary, folder):
    """An SDK that goes around the proxy, as its recipe says. Returns a sentence."""
    world = World(binary, folder)
    app = None
    try:
        app = App(folder, {"HTTP_PROXY": world.sidecar, **WAYS["https_proxy"](world)})
        said = app.next()
        hold("around the sidecar" in said.get("error", ""), f"it does not: {said}")
        return "it went around the sidecar, and was stopped"
    finally:
        if app:
            app.stop()
        world.stop()


def distrusts(binary, folder):
    """An app that was not told to trust the CA must not be fooled. Returns a sentence."""
    world = World(binary, folder)
    app = None
    try:
        app = App(folder, {"HTTPS_PROXY": world.sidecar})
        said = app.next()
        hold("certificate" in said.get("error", "").lower(), f"it said {said}")
        hold(not world.counts()["calls"], "it called nevertheless")
        return f"refused with {said['error'].split(':')[0]}"
    finally:
        if app:
            app.stop()
        world.stop()


class Redis:
    """A real one, of the test's own."""

    def __init__(self):
        self.process = None
        while self.process is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = str(free.getsockname()[1])
            self.process = subprocess.Popen(
                ["redis-server", "--port", self.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
                stdout=subprocess.DEVNULL,
            )
            while self.process and self.ask("PING") != "PONG":
                if self.process.poll() is not None:
                    self.process = None  # Another was quicker to take the port.
                time.sleep(0.05)

    def ask(self, *command):
        asked = subprocess.run(
            ["redis-cli", "-p", self.port, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        return asked.stdout.strip()

    def until(self, key, value):
        for _ in range(600):
            found = self.ask("GET", key)
            if found == value:
                return
            time.sleep(0.05)
        raise Failed(f"{key} is not the token that works but {found[:10]!r}...")

    def stop(self):
        self.process.kill()
        self.process.wait()


def legacy(binary, folder):
    """An SDK in front of WeChat itself works with what the bridge wrote, and fetches nothing. Returns a sentence."""
    redis, world, app = Redis(), None, None
    try:
        url = f"redis://127.0.0.1:{redis.port}/0"
        world = World(binary, folder, flags=["--bridge", "wechatpy=legacy", "--bridge-store", url])
        key = f"legacy:{APPID}_access_token"
        redis.until(key, json.dumps(world.live()[0]))
        app = App(folder, {"WECHAT_BASE_URL": world.wechat, "LEGACY_REDIS_URL": url})
        rounds = 4
        for n in range(rounds):
            for last in (False, True):
                good(app.next())
                sent = [s["target"] for s in call(world.control + "/seen?limit=4096") if "/user/get" in s["target"]]
                hold(world.live()[0] in sent[-1], "the app did not use the token that the bridge wrote")
                if not last:
                    app.go_on()
            for each in (key, key + "_expires_at"):
                ttl = int(redis.ask("PTTL", each))
                hold(0 < ttl < 7_200_000, f"{each} ends in {ttl} ms")
            # It dies; the sidecar learns it from an app that has moved, and those that have not are none the wiser.
            world.kill("/rotate")
            call(world.sidecar + "/cgi-bin/user/info?openid=o")
            redis.until(key, json.dumps(world.live()[0]))
            app.go_on()
        counts = world.counts()
        refused, fetches = sum(counts["refusals"].values()), counts["fetches"]
        hold(refused == rounds, f"{refused} calls were refused: {counts['refusals']}")
        hold(fetches["classic"] == 0 and fetches["stable"] == rounds + 1, f"fetches: {fetches}")
        hold(not fetches["refusals"], f"the app tried to fetch: {fetches}")
        log = world.log.read_text()
        hold("REAL access token" in log and world.secret not in log, "the sidecar did not warn, or told its secret")
        hold(not any(token in log for token in world.tokens), "the sidecar's log holds a real token")
        return f"{2 * rounds} calls through {rounds} rotations, none refused, no fetch of its own"
    except Exception as error:
        raise Failed(f"{error}\n{app.complaint() if app else ''}\n{tail(world) if world else ''}") from error
    finally:
        for part in (app, world, redis):
            if part:
                part.stop()


def loopback_up():
    """A network namespace of one's own begins with its loopback down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        up = struct.pack("16sh", b"lo", 0x1)
        fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS


def main():
    binary, work, ways = sys.argv[1], Path(sys.argv[2]).resolve(), sys.argv[3].split(",")
    # What the installing needed is not for the calls.
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    unknown = [way for way in ways if way not in WAYS]
    if unknown:
        sys.exit(f"FAILED: WAYS has {', '.join(unknown)}; there is {', '.join(WAYS)}")
    checks = []
    if "base_url" in ways:
        checks.append(("without a sidecar a dummy secret is refused", without, (binary, work / "wechatpy")))
        checks.append(("token fetches of SDKs", fetches, (binary, work / "wechatpy")))
        for name in ("legacy", "legacy-2"):
            checks.append((f"{name}, which has yet to move, over the bridge", legacy, (binary, work / name)))
    if "https_proxy" in ways:
        for name in ("wechatpy", "node-easywechat"):
            checks.append((f"{name}, https_proxy, without trust in the CA", distrusts, (binary, work / name)))
        checks.append((f"{WITHOUT_PROXY} ignores proxies", ignores, (binary, work / WITHOUT_PROXY)))
        of_old = (binary, work / OLD_AXIOS, "https_proxy", RECIPES["node-easywechat"], False)
        checks.append((f"{OLD_AXIOS}, https_proxy in clear: a day whose tokens die", day, of_old))
    if "hosts_file" in ways:
        loopback_up()
    for way in ways:
        for name, recipe in RECIPES.items():
            if name == WITHOUT_PROXY and way.endswith("_proxy"):
                continue
            checks.append((f"{name}, {way}: a day whose tokens die", day, (binary, work / name, way, recipe)))
            checks.append((f"{name}, {way}: an interface that always refuses", refused, (binary, work / name, way)))

    passed = failed = 0
    for title, check, arguments in checks:
        try:
            print(f"ok      {title}: {check(*arguments)}", flush=True)
            passed += 1
        except Exception as error:
            print(f"FAILED  {title}: {error}", flush=True)
            failed += 1
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


def ended(*_):
    raise SystemExit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, ended)
    main()
