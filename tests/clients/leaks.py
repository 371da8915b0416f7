"""File descriptors and memory of the sidecar: 5,000 calls with a connection each, 200 that are broken off at every
point, and 100 downloads that are abandoned leave nothing behind."""

import http.client
import os
import socket
import struct
import threading
import time
from urllib.parse import urlsplit

from rig import Sidecar, Simulator, check, equal, received

CALLS, THREADS = 5000, 10
# The pools of two workers keep a connection per client thread at most, and the allocator keeps what it once got.
FD_MARGIN, RSS_MARGIN_KIB = 24, 16 * 1024
SEND = "/cgi-bin/message/custom/send"


def one(address):
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request("POST", SEND, b'{"touser":"o"}', {"Connection": "close"})
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply.status == 200 and b'"errcode":0' in body


def calls(address, number):
    good = []

    def some():
        good.append(sum(one(address) for _ in range(number // THREADS)))

    threads = [threading.Thread(target=some) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(good)


def abort(address, number):
    """Breaks a call off: in its head, in its body, before the answer, in the answer; by close or by reset."""
    host, port = address.split(":")
    sock = socket.create_connection((host, int(port)), timeout=10)
    head = "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n"
    pieces = [
        b"POST " + SEND.encode(),
        (head % (SEND, 100000)).encode() + b"x" * 5000,
        (head % (SEND, 14)).encode() + b'{"touser":"o"}',
        b"GET /cgi-bin/media/get?media_id=big-20000000 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab" % SEND.encode(),
    ]
    sock.sendall(pieces[number % len(pieces)])
    if number % len(pieces) == 3:
        received("leaks", sock.recv(4096))
    if number % 2:
        # SO_LINGER of zero: close() becomes a reset.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def settled(sidecar, most):
    """Descriptors once they are at most `most`, or after 10 s: closes need a moment to be noticed."""
    until = time.monotonic() + 10
    while sidecar.fds() > most and time.monotonic() < until:
        time.sleep(0.1)
    return sidecar.fds()


def grew(name, sidecar, fds, rss):
    now = settled(sidecar, fds + FD_MARGIN)
    check("leaks: descriptors after %s: %d, from %d" % (name, now, fds), now <= fds + FD_MARGIN, fds + FD_MARGIN, now)
    now = sidecar.rss_kib()
    check("leaks: memory after %s: %d KiB, from %d" % (name, now, rss), now <= rss + RSS_MARGIN_KIB, rss + RSS_MARGIN_KIB, now)


with Simulator() as upstream, Sidecar(upstream) as proxy:
    where = urlsplit(proxy.base).netloc
    calls(where, 500)
    before = proxy.fds(), proxy.rss_kib()
    equal("leaks: %d calls with a connection each, all good" % CALLS, calls(where, CALLS), CALLS)
    grew("%d calls" % CALLS, proxy, *before)
    for turn in range(200):
        abort(where, turn)
    grew("200 calls broken off", proxy, *before)
    # A client that reads half of a download, slowly, and leaves: the rest must not pile up here.
    for turn in range(20):
        abort(where, 3)
    grew("20 downloads abandoned", proxy, *before)
    # Uploads are kept for a replay, and given back.
    for turn in range(20):
        connection = http.client.HTTPConnection(where, timeout=20)
        connection.request("POST", "/cgi-bin/media/upload?type=image", os.urandom(8 << 20))
        connection.getresponse().read()
        connection.close()
    fds, rss = proxy.fds(), proxy.rss_kib()
    check("leaks: memory after 20 uploads of 8 MiB: %d KiB, from %d" % (rss, before[1]), rss <= before[1] + 24 * 1024,
          before[1] + 24 * 1024, rss)
    check("leaks: and it still serves", one(where), True, False)
