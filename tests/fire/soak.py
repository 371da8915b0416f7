"""Soak: mixed traffic while the token dies every three seconds and a Redis keeps it; open files, threads, connections, tasks
and memory are flat after the warm-up, nothing is held when the apps have left, and no call is lost.

    soak.py [MINUTES] [FILE.svg] [APPS]

Two minutes and twelve apps without arguments; each app makes some 50 calls a second. With a file, the samples are drawn
into it."""

import random
import re
import statistics
import sys
import threading
import time
import urllib.request

from fire import Deployed, Redis, Simulator, check, connect, equal, request

MINUTES = float(sys.argv[1]) if len(sys.argv) > 1 else 2
DRAWING = sys.argv[2] if len(sys.argv) > 2 else None
THREADS = int(sys.argv[3]) if len(sys.argv) > 3 else 12
# The first part is warm-up: pools, buffers and allocator find their size.
WARM = 0.3

# What is sampled each second, and how much more of it the last third after the warm-up may have than the first: a
# part, and a number. Connections come and go with the apps; threads do not.
CURVES = [("open files", 0.1, 10), ("threads", 0, 0), ("connections of apps", 0.1, 10), ("tasks", 0.1, 10), ("memory (KiB)", 0.1, 4 << 10)]

FORM = (b'--b\r\nContent-Disposition: form-data; name="media"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
        + bytes(range(256)) * 400 + b"\r\n--b--\r\n")


def get(target):
    return ("GET %s HTTP/1.1\r\nHost: api.weixin.qq.com\r\n\r\n" % target).encode()


def post(target, kind, body, chunked=False):
    head = "POST %s HTTP/1.1\r\nHost: api.weixin.qq.com\r\nContent-Type: %s\r\n" % (target, kind)
    if chunked:
        return head.encode() + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


KINDS = [
    lambda n: request("soak-%d" % n),
    lambda n: get("/cgi-bin/user/info?openid=o%d" % n),
    lambda n: get("/cgi-bin/media/get?media_id=big-%d" % random.choice([1, 5000, 300000])),
    lambda n: get("/cgi-bin/media/get?media_id=chunked-100000"),
    lambda n: post("/cgi-bin/media/upload?type=image", "multipart/form-data; boundary=b", FORM),
    lambda n: post("/cgi-bin/message/custom/send", "application/json", b'{"touser":"o","msgtype":"text","text":{"content":"x"}}', True),
    lambda n: get("/cgi-bin/token?grant_type=client_credential&appid=wx0123456789abcdef&secret=x"),
    lambda n: get("/cgi-bin//../token"),
]


def reply(sock, unread):
    """One reply: its status, whether it is WeChat's refusal, and the rest."""
    while b"\r\n\r\n" not in unread:
        piece = sock.recv(65536)
        if not piece:
            raise OSError("closed")
        unread += piece
    head, _, unread = unread.partition(b"\r\n\r\n")
    lower = head.lower() + b"\r\n"
    if b"transfer-encoding: chunked" in lower:
        while not unread.endswith(b"0\r\n\r\n"):
            piece = sock.recv(65536)
            if not piece:
                raise OSError("closed")
            unread += piece
        body, unread = unread, b""
    else:
        length = int(lower.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        while len(unread) < length:
            piece = sock.recv(65536)
            if not piece:
                raise OSError("closed")
            unread += piece
        body, unread = unread[:length], unread[length:]
    return int(head[9:12]), body[:300], unread


def app(address, until, told, lock, number):
    sock, unread, n = None, b"", number
    while time.monotonic() < until:
        try:
            if sock is None or random.random() < 0.05:
                if sock:
                    sock.close()
                sock, unread = connect(address), b""
                if random.random() < 0.2:
                    # And some that leave in the middle.
                    sock.sendall(request()[: random.randrange(120)])
                    sock.close()
                    sock = None
                    continue
            n += THREADS
            kind = random.randrange(len(KINDS))
            sock.sendall(KINDS[kind](n))
            status, body, unread = reply(sock, unread)
            refused = any(code in body for code in (b":40001", b":42001", b":40014"))
            what = "refused" if refused else "%d %d" % (kind, status)
        except OSError as error:
            what, sock = "broken: %s" % error, None
        with lock:
            told[what] = told.get(what, 0) + 1
        time.sleep(random.random() * 0.03)


def metric(sidecar, name, labels=""):
    """All of that name and with these words in its labels, together."""
    with urllib.request.urlopen("http://%s/metrics" % sidecar.admin, timeout=20) as page:
        lines = re.findall(r"^wechat_sidecar_%s(?:{(.*)})? (\S+)$" % name, page.read().decode(), re.M)
    return int(sum(float(value) for found, value in lines if labels in found))


def sample(sidecar):
    files, threads, memory = sidecar.cost()
    return files, threads, metric(sidecar, "connections_open"), metric(sidecar, "tasks"), memory


def flat(values, part, number):
    """The first and the last third after the warm-up, by their medians, and whether the last is not more."""
    warm = values[int(len(values) * WARM):]
    third = max(1, len(warm) // 3)
    first, last = statistics.median(warm[:third]), statistics.median(warm[-third:])
    return first, last, last <= first * (1 + part) + number


def the_rule_can_fail():
    """It finds what grows, however slowly it does, and is not taken in by what comes and goes."""
    for name, part, number in CURVES:
        steady = [200 + random.randrange(-5, 6) if part else 20 for _ in range(120)]
        growing = [value + second * (number + 1 + 200 * part) / 40 for second, value in enumerate(steady)]
        check("soak: the rule for %s can fail" % name,
              flat(steady, part, number)[2] and not flat(growing, part, number)[2], "True, False")


def draw(samples, path, title):
    """A curve of each kind over the minutes, of 240 points: the most of each stretch."""
    width, row, points = 720, 110, 240
    out = ['<rect width="100%" height="100%" fill="#fff"/>', '<text x="10" y="20" font-weight="bold">%s</text>' % title]
    length = samples[-1][0]
    for number, (name, _, _) in enumerate(CURVES):
        unit = 1024 if "KiB" in name else 1
        top, kind = 30 + number * row, name.replace("KiB", "MiB")
        values = [s[number + 1] / unit for s in samples]
        most = max(values) * 1.15
        stretch = {}
        for (second, *_), value in zip(samples, values):
            at = int(second / length * (points - 1))
            stretch[at] = max(value, stretch.get(at, 0))
        line = " ".join("%d,%d" % (10 + (width - 20) * at / (points - 1), top + row - 12 - (row - 35) * value / most)
                        for at, value in sorted(stretch.items()))
        out.append('<text x="10" y="%d">%s: %.4g to %.4g, at the end %.4g</text>'
                   % (top + 16, kind, min(values), max(values), values[-1]))
        out.append('<path d="M10 %dH%d" stroke="#ccc"/>' % (top + row - 12, width - 10))
        out.append('<polyline fill="none" stroke="#07a050" stroke-width="1.5" points="%s"/>' % line)
    foot = 30 + len(CURVES) * row + 8
    for part in range(6):
        out.append('<text x="%d" y="%d" text-anchor="%s" fill="#666">%.0f min</text>'
                   % (10 + (width - 20) * part / 5, foot, ["start", "middle", "end"][(part > 0) + (part == 5)], length / 300 * part))
    with open(path, "w") as file:
        file.write('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">\n%s\n</svg>\n'
                   % (width, foot + 12, "\n".join(out)))


def until_nothing_is_held(sidecar):
    """What calls and connections held is given back, soon after the last app has left."""
    deadline = time.monotonic() + 60
    while True:
        held = {what: metric(sidecar, what) for what in ("connections_open", "replay_budget_used_bytes")}
        if not any(held.values()) or time.monotonic() > deadline:
            return held
        time.sleep(0.1)


def main():
    the_rule_can_fail()
    with Redis() as redis, Simulator() as wechat, \
            Deployed(wechat, "--log", "warn", "--store", redis.url, url=wechat.tls) as sidecar:
        began = time.monotonic()
        until, told, lock, samples = began + MINUTES * 60, {}, threading.Lock(), []
        apps = [threading.Thread(target=app, args=(sidecar.address, until, told, lock, n)) for n in range(THREADS)]
        for thread in apps:
            thread.start()
        second = 0
        while time.monotonic() < until and sidecar.alive():
            time.sleep(1)
            second += 1
            if second % 3 == 0:
                wechat.ask("/rotate" if second % 2 else "/expire", {})
            samples.append((time.monotonic() - began, *sample(sidecar)))
        for thread in apps:
            thread.join()
        calls = sum(told.values())
        counts = wechat.ask("/counts")
        fetches = counts["fetches"]["classic"] + counts["fetches"]["stable"]
        title = "%d calls in %.0f minutes, %d tokens that died, %d fetches (%s)" % (
            calls, MINUTES, second // 3, fetches, time.strftime("%Y-%m-%d"))
        if DRAWING:
            draw(samples, DRAWING, title)
        print("     %s: %s" % (title, dict(sorted(told.items()))))
        check("soak: it lives", sidecar.alive())
        lost = {what: n for what, n in told.items() if what.startswith("broken") or what.split()[-1] not in ("200", "400", "refused")}
        equal("soak: no call is lost", lost, {})
        # Two tokens may die under one call.
        check("soak: few refusals reach an app", told.get("refused", 0) <= calls // 50 + 5, calls // 50, told.get("refused", 0))
        for number, (name, part, spare) in enumerate(CURVES):
            values = [s[number + 1] for s in samples]
            first, last, is_flat = flat(values, part, spare)
            print("     %s: %d at first, %d at last, at most %d" % (name, first, last, max(values)))
            check("soak: %s: flat" % name, is_flat, "%d" % first, "%d" % last)
        most, more = max(s[3] for s in samples), max(s[4] for s in samples)
        check("soak: tasks are counted, one for each connection and some besides", most >= THREADS and more > most, THREADS, (most, more))
        equal("soak: nothing is held when the apps have left", until_nothing_is_held(sidecar),
              {"connections_open": 0, "replay_budget_used_bytes": 0})
        check("soak: a death of the token is a fetch or two", 1 <= fetches <= 2 * (second // 3) + 2, second // 3, fetches)
        check("soak: no call was sent a third time or carried out twice",
              counts["max_sends_of_a_call"] <= 2 and counts["max_accepts_of_a_call"] <= 1, "2, 1", counts)
        saved, failed = (metric(sidecar, "store_operations_total", 'outcome="%s"' % how) for how in ("ok", "error"))
        check("soak: the store takes each of them", saved >= fetches and failed == 0, fetches, (saved, failed))
        equal("soak: a clean stop", sidecar.stop(), 0)


main()
