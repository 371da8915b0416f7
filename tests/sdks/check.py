"""Runs the recipes of examples/sdks and judges them: check.py BINARY WORK WAYS

WORK holds a folder for each recipe, with its packages. Prints a line for each check, then `N passed, M failed`.
"""

import hashlib
import http.client
import json
import os
import secrets
import select
import signal
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
MINI = ["/wxa/getwxacodeunlimit", "/sns/jscode2session"]
WEB = ["/sns/oauth2/access_token", "/sns/userinfo"]
# How WeChat writes that a token is bad: every way it has been seen to, but for device interfaces (`base_resp`).
SHAPES = ["plain", "string", "last", "spaced", "control"]
# What reaches WeChat, and whether ids above 2^53 survive the SDK.
RECIPES = {
    "wechatpy": {"paths": COMMON + MINI + WEB + ["/sns/oauth2/refresh_token"], "exact": True},
    "werobot": {"paths": COMMON, "exact": True},
    "co-wechat-api": {"paths": COMMON + MINI, "exact": True},
    "node-easywechat": {"paths": COMMON + MINI + WEB, "exact": False},
}
# How the apps find the sidecar: what stands in their environment.
WAYS = {"base_url": lambda sidecar: {"WECHAT_BASE_URL": sidecar}}


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

    def __init__(self, binary, folder):
        self.secret = secrets.token_hex(16)
        self.tokens = set()
        self.processes = []
        self.log = folder / "sidecar.log"
        self.log.unlink(missing_ok=True)
        env = {"PATH": os.environ.get("PATH", "")}
        try:
            self._start(binary, env)
        except BaseException:
            self.stop()
            raise

    def _start(self, binary, env):
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
                + ["--admin-listen", "127.0.0.1:0", "--log", "debug", "--log-format", "json"],
                env={**env, "WECHAT_SIDECAR_SECRET": self.secret}, stderr=log,
            ))
        for _ in range(200):
            lines = [line for line in self.log.read_text().splitlines() if '"serving' in line]
            if lines:
                break
            time.sleep(0.05)
        hold(lines, f"the sidecar did not start: {self.log.read_text()}")
        serving = json.loads(lines[0])
        self.sidecar, self.admin = "http://" + serving["listen"], serving["admin"]
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
        self.home.mkdir(exist_ok=True)
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
    hold(result.get("errcode", 0) in (0, "0"), f"{said['step']}: {result}")
    return result


def day(binary, folder, way, recipe):
    """A day's calls, with the token dying after each. Returns a sentence."""
    world = World(binary, folder)
    app = None
    try:
        app = App(folder, WAYS[way](world.sidecar))
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
            world.lever("/refusal_shape", shape=SHAPES[kills % len(SHAPES)])
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
    world = World(binary, folder)
    app = None
    try:
        world.lever("/refuse", path="/cgi-bin/user/get", errcode=40001)
        before = world.fetches()
        app = App(folder, WAYS[way](world.sidecar))
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


def main():
    binary, work, ways = sys.argv[1], Path(sys.argv[2]).resolve(), sys.argv[3].split(",")
    unknown = [way for way in ways if way not in WAYS]
    if unknown:
        sys.exit(f"FAILED: WAYS has {', '.join(unknown)}; there is {', '.join(WAYS)}")
    checks = [("without a sidecar a dummy secret is refused", without, (binary, work / "wechatpy"))]
    for way in ways:
        for name, recipe in RECIPES.items():
            checks.append((f"{name}, {way}: a day whose tokens die", day, (binary, work / name, way, recipe)))
            checks.append((f"{name}, {way}: an interface that always refuses", refused, (binary, work / name, way)))
    checks.append(("token fetches of SDKs", fetches, (binary, work)))

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
