"""The loads: as much as a proxy can take ([`flat_out`], by wrk), so much a second ([`steady`]), and all at once
([`at_once`])."""

import http.client
import json
import math
import os
import re
import selectors
import shutil
import socket
import subprocess
import time

from rig import HERE, PATH, which


def flat_out(port, connections, seconds, shape, patient=False, meanwhile=None):
    """Calls made in so many seconds. All of them well; of a `patient` load some may have taken too long for wrk.

    `meanwhile` is called once, late in the load, when all connections are under way.
    """
    argv = [which("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "-s", os.path.join(HERE, "post.lua")]
    argv.append(f"http://127.0.0.1:{port}{PATH}")
    headers = "\n".join(f"{name}: {value}" for name, value in shape.headers.items())
    env = dict(os.environ, BENCH_BODY=shape.body.decode(), BENCH_HEADERS=headers)
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        try:
            if meanwhile:
                time.sleep(seconds * 0.7)
                meanwhile()
            said, _ = child.communicate(timeout=seconds + 60)
        finally:
            child.kill()
    late = patient and re.search(r"connect 0, read 0, write 0, timeout", said)
    counted = re.search(r"(\d+) requests in", said)
    if not counted or "Non-2xx" in said or ("Socket errors" in said and not late):
        raise SystemExit(f"calls failed on port {port}:\n{said}")
    return int(counted.group(1))


def generator():
    """Whose calls the steady ones are."""
    return "oha" if _oha() else "the bench itself"


def steady(port, rate, seconds, shape, folder, connections=32):
    """Calls at a fixed rate, however long they take: their number, and p50 and p99 in seconds from when each was due."""
    if not _oha():
        taken = sorted(_steady(port, rate, seconds, shape, connections))
        return len(taken), percentile(taken, 50), percentile(taken, 99)
    body = os.path.join(folder, "body.json")
    with open(body, "wb") as file:
        file.write(shape.body)
    argv = [_oha(), "--no-tui", "--output-format", "json", "--latency-correction", "-q", str(rate)]
    argv += ["-n", str(rate * seconds), "-c", str(connections), "-m", "POST", "-D", body]
    for name, value in shape.headers.items():
        argv += ["-H", f"{name}: {value}"]
    ran = subprocess.run([*argv, f"http://127.0.0.1:{port}{PATH}"], capture_output=True, text=True, timeout=seconds + 60)
    if ran.returncode:
        raise SystemExit(f"oha failed: {ran.stderr}")
    said = json.loads(ran.stdout)
    if said["statusCodeDistribution"] != {"200": rate * seconds}:
        raise SystemExit(f"calls failed on port {port}: {said['statusCodeDistribution']} {said['errorDistribution']}")
    return rate * seconds, said["latencyPercentiles"]["p50"], said["latencyPercentiles"]["p99"]


def at_once(port, count, shape):
    """So many connections, each warmed by one call below `/cgi-bin/warm/`; then a call on each at once: the seconds
    that each took, sorted."""
    streams, chosen = [], selectors.DefaultSelector()
    try:
        for _ in range(count):
            stream = _connected(port)
            streams.append(stream)
            chosen.register(stream, selectors.EVENT_READ, bytearray())
        _wave(streams, chosen, shape, shape.request.replace(b" /cgi-bin/", b" /cgi-bin/warm/", 1))
        return _wave(streams, chosen, shape, shape.request)
    finally:
        for stream in streams:
            stream.close()
        chosen.close()


def get(port, path):
    """The body of a reply."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        client.request("GET", path)
        return client.getresponse().read().decode()
    finally:
        client.close()


def percentile(values, percent):
    """The value that so many percent of the sorted `values` do not exceed."""
    return values[max(math.ceil(len(values) * percent / 100) - 1, 0)]


def _wave(streams, chosen, shape, request):
    began, taken = {}, []
    for stream in streams:
        began[stream] = time.monotonic()
        stream.send(request)
    until = time.monotonic() + 30
    while len(taken) < len(streams):
        if time.monotonic() > until:
            raise SystemExit(f"only {len(taken)} of {len(streams)} calls were answered")
        for key, _ in chosen.select(1):
            if _whole(key, shape):
                taken.append(time.monotonic() - began[key.fileobj])
    return sorted(taken)


def _steady(port, rate, seconds, shape, connections):
    chosen = selectors.DefaultSelector()
    free, due, began, taken = [], 0, {}, []
    for _ in range(connections):
        stream = _connected(port)
        chosen.register(stream, selectors.EVENT_READ, bytearray())
        free.append(stream)
    start = time.monotonic()
    while len(taken) < rate * seconds:
        now = time.monotonic()
        while free and due < rate * seconds and start + due / rate <= now:
            stream = free.pop()
            began[stream] = start + due / rate
            stream.send(shape.request)
            due += 1
        wait = start + due / rate - now if free and due < rate * seconds else 1
        for key, _ in chosen.select(max(wait, 0)):
            if _whole(key, shape):
                taken.append(time.monotonic() - began.pop(key.fileobj))
                free.append(key.fileobj)
    for key in list(chosen.get_map().values()):
        key.fileobj.close()
    return taken


def _whole(key, shape):
    """Reads what came; whether the reply is whole now, and the right one."""
    piece = key.fileobj.recv(65536)
    key.data.extend(piece)
    head, end, body = bytes(key.data).partition(b"\r\n\r\n")
    if piece and (not end or len(body) < len(shape.reply)):
        return False
    if not head.startswith(b"HTTP/1.1 200") or body != shape.reply:
        raise SystemExit(f"not the answer that was sent: {bytes(key.data)!r}")
    key.data.clear()
    return True


def _connected(port):
    stream = socket.create_connection(("127.0.0.1", port))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.setblocking(False)
    return stream


def _oha():
    return shutil.which("oha", path=os.environ["PATH"] + ":" + os.path.expanduser("~/.cargo/bin"))
