"""Soak: mixed traffic while the token dies every three seconds; open files, threads and memory are flat after the
warm-up, and no call is lost.

    soak.py [MINUTES] [FILE.svg]

Two minutes without arguments. With a file, the samples are drawn into it."""

import random
import statistics
import sys
import threading
import time

from fire import Deployed, Simulator, check, connect, equal, request

MINUTES = float(sys.argv[1]) if len(sys.argv) > 1 else 2
DRAWING = sys.argv[2] if len(sys.argv) > 2 else None
THREADS = 12
# The first part is warm-up: pools, buffers and allocator find their size.
WARM = 0.3

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


def draw(samples, path):
    """Three curves over the minutes."""
    width, height, out = 900, 180, []
    for row, (name, pick) in enumerate([("open files", 1), ("threads", 2), ("resident MiB", 3)]):
        values = [s[pick] / (1024 if pick == 3 else 1) for s in samples]
        most = max(values) * 1.1 or 1
        points = " ".join("%.1f,%.1f" % (40 + (width - 50) * s[0] / samples[-1][0], row * height + 170 - 140 * v / most)
                          for s, v in zip(samples, values))
        out.append('<text x="40" y="%d">%s: %.1f to %.1f, last %.1f</text>' % (row * height + 20, name, min(values), max(values), values[-1]))
        out.append('<polyline fill="none" stroke="#07c160" stroke-width="1.5" points="%s"/>' % points)
    with open(path, "w") as file:
        file.write('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="13">%s</svg>\n'
                   % (width, 3 * height, "".join(out)))


def main():
    with Simulator() as wechat, Deployed(wechat, "--log", "warn", url=wechat.tls) as sidecar:
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
            samples.append((time.monotonic() - began, *sidecar.cost()))
        for thread in apps:
            thread.join()
        if DRAWING:
            draw(samples, DRAWING)
        calls = sum(told.values())
        print("     %d calls in %.1f minutes: %s" % (calls, MINUTES, dict(sorted(told.items()))))
        check("soak: it lives", sidecar.alive())
        lost = {what: n for what, n in told.items() if what.startswith("broken") or what.split()[-1] not in ("200", "400", "refused")}
        equal("soak: no call is lost", lost, {})
        # Two tokens may die under one call.
        check("soak: few refusals reach an app", told.get("refused", 0) <= calls // 50 + 5, calls // 50, told.get("refused", 0))
        flat = samples[int(len(samples) * WARM):]
        third = max(1, len(flat) // 3)
        for name, pick, spare in (("open files", 1, 30), ("threads", 2, 0), ("memory (KiB)", 3, 8 << 10)):
            first = statistics.median(s[pick] for s in flat[:third])
            last = statistics.median(s[pick] for s in flat[-third:])
            print("     %s: %d at first, %d at last, at most %d" % (name, first, last, max(s[pick] for s in samples)))
            check("soak: %s are flat" % name, last <= first * (1 if pick == 2 else 1.1) + spare, "%d" % first, "%d" % last)
        counts = wechat.ask("/counts")
        check("soak: no call was sent a third time or carried out twice",
              counts["max_sends_of_a_call"] <= 2 and counts["max_accepts_of_a_call"] <= 1, "2, 1", counts)
        equal("soak: a clean stop", sidecar.stop(), 0)


main()
