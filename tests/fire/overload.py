"""Overload: the peak is measured with few connections, then 5,000 connections each send call after call to a WeChat that
takes its time, beside apps that read and write as slowly as they can. Nothing crashes, memory stays within its budget,
goodput stays near the peak, and when they have gone all is as before.

    overload.py [SECONDS of each phase]

The peak is measured before and after, and the lesser counts. A short run allows goodput to fall to a fifth of it, as it
shares two cores with its own load and whatever else there is; a long one (15 s and more) to four fifths."""

import socket
import sys
import threading
import time

from fire import Deployed, Load, Simulator, call, check, connect, equal, more_files

SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 5
CONNECTIONS = 5000
# Idle connections to WeChat that may be there: 1,024 for each of two workers, and some to spare.
KEPT = 2200
# Of resident memory: two connections, their buffers and a call under way for each of them, and some to spare.
BUDGET_MIB = 400
# A machine that has other things to do is no fault of the sidecar's.
PATIENT = ("--connect-timeout", "60s", "--response-timeout", "120s", "--token-wait", "60s")


class Slow(threading.Thread):
    """So many apps that take a download two kilobytes at a time, and as many that send a call byte by byte."""

    def __init__(self, address, each):
        super().__init__(daemon=True)
        self.address, self.each, self.over = address, each, threading.Event()

    def run(self):
        readers, writers = [], []
        for _ in range(self.each):
            reader = socket.socket()
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, port = self.address.rsplit(":", 1)
            reader.connect((host, int(port)))
            reader.sendall(b"GET /cgi-bin/media/get?media_id=big-20000000 HTTP/1.1\r\nHost: a\r\n\r\n")
            reader.setblocking(False)
            readers.append(reader)
            writers.append(connect(self.address))
        text = b"POST /cgi-bin/x HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100000
        at = 0
        while not self.over.wait(0.25):
            for reader in readers:
                try:
                    reader.recv(2048)
                except OSError:
                    pass
            for writer in writers:
                try:
                    writer.send(text[at : at + 1])
                except OSError:
                    pass
            at += 1
        for sock in readers + writers:
            sock.close()


def main():
    most = more_files(2 * CONNECTIONS + 2000)
    connections = min(CONNECTIONS, (most - 1000) // 2)
    if connections < CONNECTIONS:
        print("note: %d files may be open here, so there are %d connections instead of %d" % (most, connections, CONNECTIONS))
    with Simulator() as wechat, Deployed(wechat, "--log", "warn", *PATIENT) as sidecar:
        call(sidecar.address)
        wechat.ask("/delay", {"ms": 20})
        def peak_now():
            few = Load(sidecar.address, connections // 10)
            few.fill(30)
            peak = few.run(SECONDS)
            equal("at its peak every call is carried out", (few.told, few.bad, few.broken, few.strange), (0, 0, 0, {}))
            few.end()
            return peak

        peak = peak_now()
        before = sidecar.cost()
        print("     peak %d calls/s with %d connections, %d files, %d threads, %d MiB" % (
            peak, connections // 10, before[0], before[1], before[2] >> 10))

        slow = Slow(sidecar.address, 50)
        slow.start()
        many = Load(sidecar.address, connections)
        many.fill(60)
        goodput = many.run(SECONDS)
        cost = sidecar.cost()
        total = many.good + many.shed + many.told + many.bad
        print("     overload %d calls/s with %d connections, %d files, %d MiB; of %d calls %d were carried out, %d told to come "
              "again, %d told why not; %d connections broke" % (goodput, len(many.conns), cost[0], cost[2] >> 10, total,
                                                             many.good, many.shed, many.told, many.broken))
        check("overload: it lives", sidecar.alive())
        equal("overload: each call is carried out or honestly answered", (many.bad, many.strange), (0, {}))
        check("overload: nearly none but by a limit is told why not", many.told <= total // 20, total // 20, many.told)
        check("overload: hardly a connection breaks", many.broken <= connections // 50, connections // 50, many.broken)
        check("overload: the connections are there", len(many.conns) > connections * 0.9, connections, len(many.conns))
        check("overload: memory within its budget", cost[2] >> 10 < BUDGET_MIB, BUDGET_MIB, cost[2] >> 10)
        began, (status, _) = time.monotonic(), call(sidecar.address)
        check("overload: one more call is answered", status in (200, 503, 429), "200 or 503", status)
        print("     one more call took %d ms" % ((time.monotonic() - began) * 1000))

        many.end()
        slow.over.set()
        slow.join()
        peak = min(peak, peak_now())
        least = peak * (0.8 if SECONDS >= 15 else 0.2)
        check("overload: goodput stays near its peak", goodput >= least, ">= %d" % least, "%d of %d" % (goodput, peak))
        wechat.ask("/delay", {"ms": 0})
        until = time.monotonic() + 30
        while time.monotonic() < until and (call(sidecar.address)[0] != 200 or sidecar.cost()[0] > before[0] + KEPT):
            time.sleep(0.1)
        equal("recovery: a call succeeds", call(sidecar.address)[0], 200)
        after = sidecar.cost()
        # Those to WeChat are kept for a while when they are idle.
        check("recovery: the connections of the apps are gone", after[0] <= before[0] + KEPT, before[0] + KEPT, after[0])
        equal("recovery: threads are as before", after[1], before[1])
        counts = wechat.ask("/counts")
        equal("no call was carried out twice", counts["max_accepts_of_a_call"] <= 1, True)
        equal("a clean stop", sidecar.stop(), 0)


main()
