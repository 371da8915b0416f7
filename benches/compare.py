#!/usr/bin/env python3
"""Compares wechat-sidecar with what else puts a token into a call: `python3 benches/compare.py`, from anywhere.

    --rounds N   interleaved rounds of every load (7)
    --seconds S  how long each load runs in each round (3)
    --check      only starts every proxy and checks that it delivers the exact token
    --plain      leaves the TLS upstream out
    --out FILE   where the Markdown table goes (standard output)

The peers are Debian's nginx, nginx with Lua (which does our whole job: looks at the answer and can ask again) and
HAProxy, one worker each, before an nginx of one worker. What counts is the CPU time of a proxy's whole process tree for
a call, as a ratio to nginx in the same round: microseconds of a shared machine say little, ratios within a round more.
The instructions of a call say most: see instructions.py.

Needs: apt-get install nginx libnginx-mod-http-lua lua-cjson haproxy wrk strace openssl curl
"""

import argparse
import datetime
import os
import platform
import random
import re
import selectors
import socket
import statistics
import subprocess
import sys
import time

import rig as bench
from rig import BODY, HEAD, HERE, REPLY, ROOT, Rig, answer, need, peers, which

CONNECTIONS = [1, 16, 64, 256]
STEADY = 2000


def wrk(port, connections, seconds, patient=False):
    """Calls made in so many seconds. All of them well; of a `patient` load some may have taken too long for wrk."""
    argv = [which("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "-s", os.path.join(HERE, "post.lua")]
    argv.append(f"http://127.0.0.1:{port}/cgi-bin/message/template/send?debug=1")
    env = dict(os.environ, BENCH_BODY=BODY.decode())
    said = subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout
    late = patient and re.search(r"connect 0, read 0, write 0, timeout", said)
    if "Non-2xx" in said or ("Socket errors" in said and not late):
        raise SystemExit(f"calls failed on port {port}:\n{said}")
    return int(re.search(r"(\d+) requests in", said).group(1))


def steady(port, rate, seconds, connections=32):
    """Calls at a fixed rate, however long they take. Their number, and the latencies from when each was due."""
    chosen = selectors.DefaultSelector()
    free, due, began, taken = [], 0, {}, []
    for _ in range(connections):
        stream = socket.create_connection(("127.0.0.1", port))
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.setblocking(False)
        chosen.register(stream, selectors.EVENT_READ, bytearray())
        free.append(stream)
    start = time.monotonic()
    while len(taken) < rate * seconds:
        now = time.monotonic()
        while free and due < rate * seconds and start + due / rate <= now:
            stream = free.pop()
            began[stream] = start + due / rate
            stream.send(HEAD + BODY)
            due += 1
        wait = start + due / rate - now if free and due < rate * seconds else 1
        for key, _ in chosen.select(max(wait, 0)):
            key.data.extend(key.fileobj.recv(65536))
            if key.data.endswith(REPLY.encode()[-20:]):
                key.data.clear()
                taken.append(time.monotonic() - began.pop(key.fileobj))
                free.append(key.fileobj)
    for key in list(chosen.get_map().values()):
        key.fileobj.close()
    return taken


def cost(process, load):
    """What a load gives, and the CPU seconds it took the proxy."""
    before = process.cpu()
    given = load()
    return given, process.cpu() - before


def small_calls(rig, tls, rounds, seconds):
    """CPU-µs a call: {load: {peer: [one for each round]}}; and what the memory was, {peer: (idle, busy)}."""
    costs = {load: {} for load in [*CONNECTIONS, "steady"]}
    memory, latencies = {}, {}
    running = {peer.name: (peer, peer.start(tls)) for peer in peers(rig)}
    for peer, process in running.values():
        peer.check()
        memory[peer.name] = [process.memory(), process.memory("Pss")]
        wrk(peer.port, 64, 1)
    for number in range(rounds):
        order = list(running.values())
        random.Random(number).shuffle(order)
        for load in costs:
            for peer, process in order:
                if load == "steady":
                    taken, cpu = cost(process, lambda: steady(peer.port, STEADY, seconds))
                    calls = len(taken)
                    latencies.setdefault(peer.name, []).append(statistics.median(taken))
                else:
                    calls, cpu = cost(process, lambda: wrk(peer.port, load, seconds))
                costs[load].setdefault(peer.name, []).append(cpu / calls * 1e6)
        print(f"round {number + 1} of {rounds} done", file=sys.stderr)
    for peer, process in running.values():
        memory[peer.name] += [process.memory(), process.memory("Pss")]
        process.stop()
    return costs, memory, latencies


def sockets(rig, tls):
    """Reads, writes and options on sockets a call, by strace."""
    found = {}
    traced = "read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg,getsockopt,setsockopt,futex"
    for peer in peers(rig):
        process = peer.start(tls)
        wrk(peer.port, 64, 1)
        out = rig.path(f"strace-{peer.name}")
        argv = [which("strace"), "-f", "-c", "-U", "calls,name", "-o", out, "-e", f"trace={traced}"]
        for pid in process.tree():
            argv += ["-p", str(pid)]
        tracer = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        time.sleep(1)
        # Under strace a call takes many times as long.
        calls = wrk(peer.port, 16, 3, patient=True)
        tracer.terminate()
        tracer.wait()
        process.stop()
        with open(out) as lines:
            counted = re.findall(r"^\s*(\d+)\s+(\w+)$", lines.read(), re.M)
        found[peer.name] = sum(int(n) for n, name in counted if name != "total") / calls
    return found


def starts(rig, tls, times=7):
    """Milliseconds from the start to the first answer through the upstream."""
    found = {}
    for peer in peers(rig):
        taken = []
        for _ in range(times):
            process = peer.start(tls, wait=False)
            answer(process, peer.port, "/cgi-bin/x?a=1")
            taken.append((time.monotonic() - process.started) * 1e3)
            process.stop()
        found[peer.name] = taken
    return found


def bulk(rig, tls, rounds):
    """CPU-ms, and by how many MiB the peak grew: {"down" or "up": {peer: [(ms, MiB)]}}."""
    found = {"down": {}, "up": {}}
    upload = rig.path("upload")
    with open(upload, "wb") as file:
        file.write(os.urandom(20 << 20))
    for peer in peers(rig):
        process = peer.start(tls)
        peer.check()
        for _ in range(rounds):
            for way in found:
                path = "/cgi-bin/media/get?a=1" if way == "down" else "/cgi-bin/media/upload?a=1"
                argv = [which("curl"), "--silent", "--fail", "--output", os.devnull]
                argv.append(f"http://127.0.0.1:{peer.port}{path}")
                if way == "up":
                    argv += ["--header", "Expect:", "--data-binary", f"@{upload}"]
                process.forget_peak()
                before = process.peak()
                _, cpu = cost(process, lambda: subprocess.run(argv, check=True))
                grown = max(process.peak() - before, 0)
                found[way].setdefault(peer.name, []).append((cpu * 1e3, grown))
        process.stop()
    return found


def spread(values, digits=2):
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f} to {max(values):.{digits}f}]"


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def report(rig, arguments):
    names = [peer.name for peer in peers(rig)]
    said = [title(), ""]
    for tls in [False] if arguments.plain else [True, False]:
        kind = "TLS 1.3" if tls else "plain"
        costs, memory, latencies = small_calls(rig, tls, arguments.rounds, arguments.seconds)
        said.append(f"CPU a call as a ratio to nginx in the same round, {kind} upstream: median [least to most] of "
                    f"{arguments.rounds} rounds; below, the median in µs.\n")
        head = ["proxy", *(f"{load} connections" if load != "steady" else f"{STEADY} calls/s" for load in costs)]
        ratios = [
            [name, *(spread([a / b for a, b in zip(of[name], of["nginx"])]) for of in costs.values())] for name in names
        ]
        micros = [[f"{name}, µs", *(f"{statistics.median(of[name]):.1f}" for of in costs.values())] for name in names]
        said.append(table(head, ratios + micros))
        calls, first, moved = sockets(rig, tls), starts(rig, tls), bulk(rig, tls, 3)
        rows = []
        for name in names:
            idle, idle_pss, busy, busy_pss = memory[name]
            down, up = moved["down"][name], moved["up"][name]
            rows.append([
                name,
                f"{calls[name]:.1f}",
                f"{statistics.median(latencies[name]) * 1e6:.0f}",
                f"{idle:.1f} ({idle_pss:.1f})",
                f"{busy:.1f} ({busy_pss:.1f})",
                spread(first[name], 0),
                f"{statistics.median(ms for ms, _ in down):.0f} ms, +{max(grown for _, grown in down):.1f} MiB",
                f"{statistics.median(ms for ms, _ in up):.0f} ms, +{max(grown for _, grown in up):.1f} MiB",
            ])
        said.append(table(
            ["proxy", "socket syscalls a call", f"p50 at {STEADY}/s, µs", "RSS idle (PSS), MiB",
             "RSS after 256 connections (PSS), MiB", "start to first answer, ms", "100 MiB down: CPU, peak",
             "20 MiB up: CPU, peak"],
            rows,
        ))
    size = os.path.getsize(bench.SIDECAR) / 1e6
    said.append(f"The stripped binary has {size:.1f} MB, TLS included.")
    return "\n".join(said)


def title():
    run = lambda *argv: subprocess.run(argv, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    commit = run("git", "rev-parse", "--short", "HEAD") + ("+" if run("git", "status", "--porcelain") else "")
    with open("/proc/cpuinfo") as lines:
        model = re.search(r"model name\s*:\s*(.*)", lines.read()).group(1)
    version = subprocess.run([which("nginx"), "-v"], capture_output=True, text=True).stderr.split("/")[-1].strip()
    return (
        f"Measured on {datetime.date.today()}, commit {commit}, {os.cpu_count()} CPUs ({model}), Linux "
        f"{platform.release()}, nginx {version}; by benches/compare.py."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    need("nginx", "lua", "cjson", "haproxy", "openssl", *([] if arguments.check else ["wrk", "strace", "curl"]))
    if not os.path.exists(bench.SIDECAR):
        raise SystemExit(f"{bench.SIDECAR} is not there; cargo build --release --locked")
    rig = Rig()
    try:
        if arguments.check:
            for tls in [False, True]:
                for peer in peers(rig):
                    process = peer.start(tls)
                    peer.check()
                    bench.calls(peer.port, 3)
                    process.stop()
                    print(f"{peer.name} delivers the token, {'TLS' if tls else 'plain'}")
            return
        said = report(rig, arguments)
    finally:
        rig.stop()
    if arguments.out:
        with open(arguments.out, "w") as file:
            file.write(said + "\n")
    else:
        print(said)


if __name__ == "__main__":
    main()
