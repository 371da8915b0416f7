#!/usr/bin/env python3
"""Compares wechat-sidecar with what else puts a token into a call: `python3 benches/compare.py`, from anywhere.

    --rounds N          interleaved rounds of every load (7)
    --seconds S         how long each load runs in each round (3)
    --only PART,...     of small, sockets, start, bulk, herd, instructions (all)
    --plain             leaves the TLS upstream out
    --body BYTES        of the small call (200), whose other sizes are
    --headers N         its header lines as it leaves the app (5, and no fewer)
    --reply BYTES       of the reply to it (150)
    --reply-headers N   how many the reply has beside nginx's own (0)
    --errcode WHERE     it stands in the reply: first, last or none (first)
    --check             only starts every proxy and checks that it delivers the exact token
    --out FILE          where the Markdown goes (standard output)

The peers are Debian's nginx, nginx with Lua (which does our whole job: looks at the answer and can ask again) and
HAProxy, one worker each, before an nginx of one worker. What counts is the CPU time of a proxy's whole process tree for
a call, as a ratio to nginx in the same round: microseconds of a shared machine say little, ratios within a round more.
The instructions of a call say most: see instructions.py. With all parts and rounds it takes about half an hour, and
wants a machine that does nothing else.

Needs: apt-get install nginx libnginx-mod-http-lua lua-cjson haproxy wrk strace valgrind openssl curl
The calls at a steady rate are made by oha where it is (cargo install --locked oha), or else by the bench itself.
"""

import argparse
import datetime
import os
import platform
import random
import re
import resource
import signal
import statistics
import subprocess
import sys
import time

import instructions
import rig as bench
from loads import at_once, flat_out, generator, get, percentile, steady
from rig import FETCH, HERD, HERD_TLS, ROOT, Rig, Shape, answer, need, peers, which

CONNECTIONS = [1, 16, 64, 256]
STEADY = 2000
HERD_SIZE = 1000
US = "wechat-sidecar"
# What is kept of a call's body by default, in MiB.
REPLAY_LIMIT = 16
PARTS = ["small", "sockets", "start", "bulk", "herd", "instructions"]
SOCKET_CALLS = (
    "read,readv,recvfrom,recvmsg,recvmmsg,write,writev,sendto,sendmsg,sendmmsg,sendfile,splice,"
    "socket,connect,accept,accept4,shutdown,getsockopt,setsockopt,getsockname,getpeername"
)


def cost(process, load):
    """What a load gives, and the CPU seconds it took the proxy."""
    before = process.cpu()
    given = load()
    return given, process.cpu() - before


def small_calls(rig, tls, rounds, seconds):
    """CPU-µs a call, {load: {peer: [one for each round]}}; memory, {peer: [RSS, PSS, and both with 256 connections]};
    latencies at the steady rate, {peer or "direct": [(p50, p99) for each round]}."""
    shape = rig.shape
    costs = {load: {} for load in [*CONNECTIONS, "steady"]}
    memory, latencies = {}, {}
    running = [(peer, peer.start(tls)) for peer in peers(rig)]
    for peer, process in running:
        peer.check()
        memory[peer.name] = [process.memory(), process.memory("Pss")]
        flat_out(peer.port, 64, 1, shape)
    for number in range(rounds):
        order = list(running)
        random.Random(number).shuffle(order)
        for connections in CONNECTIONS:
            for peer, process in order:
                calls, cpu = cost(process, lambda: flat_out(peer.port, connections, seconds, shape))
                costs[connections].setdefault(peer.name, []).append(cpu / calls * 1e6)
        for peer, process in order:
            (calls, *percentiles), cpu = cost(process, lambda: steady(peer.port, STEADY, seconds, shape, rig.folder))
            costs["steady"].setdefault(peer.name, []).append(cpu / calls * 1e6)
            latencies.setdefault(peer.name, []).append(percentiles)
        _, *percentiles = steady(bench.PLAIN, STEADY, seconds, shape, rig.folder)
        latencies.setdefault("direct", []).append(percentiles)
        print(f"round {number + 1} of {rounds} done", file=sys.stderr)
    for peer, process in running:
        look = lambda: memory[peer.name].extend([process.memory(), process.memory("Pss")])
        flat_out(peer.port, 256, seconds, shape, meanwhile=look)
        process.stop()
    return costs, memory, latencies


def sockets(rig, tls):
    """Calls to the kernel about sockets, for each call of an app, by strace."""
    found = {}
    for peer in peers(rig):
        process = peer.start(tls)
        flat_out(peer.port, 64, 1, rig.shape)
        out = rig.path(f"strace-{peer.name}")
        argv = [which("strace"), "-f", "-c", "-U", "calls,name", "-o", out, "-e", f"trace={SOCKET_CALLS}"]
        for pid in process.tree():
            argv += ["-p", str(pid)]
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as tracer:
            try:
                time.sleep(1)
                # Under strace a call takes many times as long.
                calls = flat_out(peer.port, 16, 3, rig.shape, patient=True)
            finally:
                tracer.terminate()
        process.stop()
        with open(out) as lines:
            counted = re.findall(r"^\s*(\d+)\s+(\w+)$", lines.read(), re.M)
        found[peer.name] = sum(int(n) for n, name in counted if name != "total") / calls
    return found


def starts(rig, tls, times):
    """Milliseconds from the start to the first answer through the upstream."""
    found = {}
    for _ in range(times):
        for peer in peers(rig):
            process = peer.start(tls, wait=False)
            if answer(process, peer.port, "/cgi-bin/x?a=1") != rig.shape.reply:
                raise SystemExit(f"the first answer of {peer.name} is not the upstream's")
            found.setdefault(peer.name, []).append((time.monotonic() - process.started) * 1e3)
            process.stop()
    return found


def bulk(rig, tls, times):
    """CPU-ms, and by how many MiB the peak grew: {"down" or "up": {peer: [(ms, MiB)]}}. Each by a process that did
    nothing of the kind before: memory that was freed and kept would hide what the next one takes."""
    found = {"down": {}, "up": {}}
    upload = rig.path("upload")
    with open(upload, "wb") as file:
        file.write(os.urandom(20 << 20))
    for _ in range(times):
        for way in found:
            for peer in peers(rig):
                process = peer.start(tls)
                peer.check()
                bench.calls(peer.port, 20, rig.shape)
                path = "/cgi-bin/media/get?a=1" if way == "down" else "/cgi-bin/media/upload?a=1"
                argv = [which("curl"), "--silent", "--fail", "--output", os.devnull]
                argv.append(f"http://127.0.0.1:{peer.port}{path}")
                if way == "up":
                    argv += ["--header", "Expect:", "--data-binary", f"@{upload}"]
                process.forget_peak()
                before = process.peak()
                _, cpu = cost(process, lambda: subprocess.run(argv, check=True))
                grown = max(process.peak() - before, 0)
                process.stop()
                found[way].setdefault(peer.name, []).append((cpu * 1e3, grown))
    return found


def herd(rig, tls, times):
    """Milliseconds that p99 of so many calls, refused all at once, is longer than the one fetch; and p99 of as many
    with no proxy, refusal or fetch, for what the machine makes of such a crowd: [(ms, ms)]."""
    found = []
    for _ in range(times):
        upstream = rig.herd()
        us = next(peer for peer in peers(rig) if peer.name == US)
        process = us.start(tls, ports=(HERD, HERD_TLS))
        taken = at_once(us.port, HERD_SIZE, rig.shape)
        fetches = get(HERD, "/fetches")
        process.stop()
        direct = at_once(HERD, HERD_SIZE, rig.shape)
        upstream.stop()
        if fetches != "2":
            raise SystemExit(f"{HERD_SIZE} calls that were refused at once were {fetches} fetches, with the first; not 2")
        found.append(((percentile(taken, 99) - FETCH) * 1e3, percentile(direct, 99) * 1e3))
    return found


def spread(values, digits=2):
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f} to {max(values):.{digits}f}]"


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


class Targets:
    """What the figures should be, and what they are."""

    def __init__(self):
        self.rows = []

    def add(self, figure, must, stretch, found, digits=2, unit="", note=""):
        said = round(found, digits)
        verdict = "**missed**" if said > must else "reached" if said <= stretch else "reached, not the stretch"
        form = lambda value: f"{value:,.{digits}f}{unit}"
        self.rows.append([figure, f"≤ {form(must)}", f"≤ {form(stretch)}", form(found) + note, verdict])

    def table(self):
        return table(["figure", "must", "stretch", "here", ""], self.rows)


def told_small(rig, tls, arguments, targets, said):
    kind = "TLS" if tls else "plain"
    costs, memory, latencies = small_calls(rig, tls, arguments.rounds, arguments.seconds)
    names = list(memory)
    ratios = lambda load, name, base="nginx": [a / b for a, b in zip(costs[load][name], costs[load][base])]
    said.append(
        f"CPU a call as a ratio to nginx in the same round, {kind}{' 1.3' if tls else ''} upstream: median [least to most] "
        f"of {arguments.rounds} rounds; below, the median in µs.\n"
    )
    heads = ["1 connection", *(f"{n} connections" for n in CONNECTIONS[1:]), f"{STEADY:,} calls/s"]
    said.append(table(["proxy", *heads], [
        *([name, *(spread(ratios(load, name)) for load in costs)] for name in names),
        *([f"{name}, µs", *(f"{statistics.median(of[name]):.1f}" for of in costs.values())] for name in names),
    ]))
    middle = lambda name, n: statistics.median(latency[n] for latency in latencies[name]) * 1e6
    rows = []
    for name in ["direct", *names]:
        added = lambda n: f"{middle(name, n):.0f} ({middle(name, n) - middle('direct', n):+.0f})"
        p50, p99 = [added(0), added(1)] if name != "direct" else [f"{middle(name, n):.0f}" for n in (0, 1)]
        idle = busy = ""
        if name in memory:
            rss, pss, busy_rss, busy_pss = memory[name]
            idle, busy = f"{rss:.1f} ({pss:.1f})", f"{busy_rss:.1f} ({busy_pss:.1f})"
        rows.append([name, p50, p99, idle, busy])
    said.append(table(
        ["proxy", f"p50 at {STEADY:,}/s (over direct), µs", "p99, µs", "RSS idle (PSS), MiB",
         "RSS with 256 connections (PSS), MiB"],
        rows,
    ))
    ratio = lambda load, base="nginx": statistics.median(ratios(load, US, base))
    if not tls:
        targets.add("CPU a call vs nginx, plain, 64 connections", 1.00, 0.85, ratio(64))
        return
    targets.add("CPU a call vs nginx, TLS, 64 connections", 0.80, 0.70, ratio(64))
    targets.add("the same at 256 connections", 0.90, 0.75, ratio(256))
    targets.add(f"the same at a steady {STEADY:,} calls a second", 0.95, 0.85, ratio("steady"))
    targets.add("vs nginx + Lua that looks and can replay, TLS, 64 connections", 0.50, 0.45, ratio(64, "nginx-lua"))
    rss, _, busy_rss, _ = memory[US]
    targets.add("RSS idle, TLS", 8, 6, rss, 1, " MiB")
    targets.add("RSS with 256 connections, TLS", 20, 16, busy_rss, 1, " MiB")


def told_sockets(rig, tls, arguments, targets, said):
    counted = sockets(rig, tls)
    targets.add(f"socket syscalls a call, {'TLS' if tls else 'plain'}", 4, 4, counted[US], 1)
    return "socket syscalls a call", {name: f"{n:.1f}" for name, n in counted.items()}


def told_start(rig, tls, arguments, targets, said):
    first = starts(rig, tls, max(arguments.rounds, 3))
    if tls:
        targets.add("start to first answer over TLS", 15, 10, statistics.median(first[US]), 1, " ms")
    return "start to first answer, ms", {name: spread(taken, 0) for name, taken in first.items()}


def told_bulk(rig, tls, arguments, targets, said):
    moved = bulk(rig, tls, max(arguments.rounds // 2, 2))
    cpu = lambda way, name: statistics.median(ms for ms, _ in moved[way][name])
    grown = lambda way, name: max(mib for _, mib in moved[way][name])
    if tls:
        targets.add("100 MiB down over TLS, CPU", 100, 75, cpu("down", US), 0, " ms", f" (nginx {cpu('down', 'nginx'):.0f})")
        targets.add("100 MiB down over TLS, growth", 4, 2, grown("down", US), 1, " MiB")
        # A body longer than the limit is not kept: what one takes beyond the limit is all it takes.
        up = grown("up", US)
        targets.add(f"20 MiB up, growth beyond the replay limit ({REPLAY_LIMIT} MiB)", 4, 2, max(up - REPLAY_LIMIT, 0), 1,
                    " MiB", f" (in all {up:.1f})")
    return "100 MiB down: CPU, peak; 20 MiB up: CPU, peak", {
        name: "; ".join(f"{cpu(way, name):.0f} ms, +{grown(way, name):.1f} MiB" for way in moved)
        for name in moved["down"]
    }


def told_herd(rig, tls, arguments, targets, said):
    beyond, direct = zip(*herd(rig, tls, max(arguments.rounds // 2, 3)))
    kind = "TLS" if tls else "plain"
    targets.add(f"{HERD_SIZE:,} calls refused at once, {kind}: p99 beyond the one fetch", 25, 10,
                statistics.median(beyond), 1, " ms",
                f" [{min(beyond):.1f} to {max(beyond):.1f}]; with no proxy {statistics.median(direct):.1f}")


def told_instructions(rig, targets, said):
    counted = dict(instructions.exchanges(rig, "nginx", "haproxy"))
    call = counted.pop(instructions.CALL)
    targets.add("user instructions a call, plain upstream", 24000, 16000, call, 0)
    for name, count in counted.items():
        what = name.removeprefix(f"{instructions.CALL}, ")
        if what not in ("nginx", "haproxy"):
            targets.add(f"{what}: added instructions", 10, 5, (count / call - 1) * 100, 1, " %")
    peer = lambda name: f"{name} {counted[f'{instructions.CALL}, {name}']:,}"
    said.append(f"User instructions a call, plain upstream: {peer('nginx')}, {peer('haproxy')}, {US} {call:,}.\n")


def report(rig, arguments):
    targets, said = Targets(), []
    kinds = [False] if arguments.plain else [True, False]
    if "instructions" in arguments.only:
        told_instructions(rig, targets, said)
    for tls in kinds:
        if "small" in arguments.only:
            told_small(rig, tls, arguments, targets, said)
        columns = {}
        for name, told in [("sockets", told_sockets), ("start", told_start), ("bulk", told_bulk), ("herd", told_herd)]:
            if name in arguments.only:
                print(f"{name}, {'TLS' if tls else 'plain'}", file=sys.stderr)
                if column := told(rig, tls, arguments, targets, said):
                    columns[column[0]] = column[1]
        if columns:
            names = [peer.name for peer in peers(rig)]
            said.append(f"{'TLS 1.3' if tls else 'Plain'} upstream:\n")
            said.append(table(["proxy", *columns], [[name, *(of[name] for of in columns.values())] for name in names]))
    size = os.path.getsize(bench.SIDECAR) / 1e6
    targets.add("stripped binary, TLS included", 8, 6, size, 2, " MB")
    return "\n".join([title(rig, arguments), "", targets.table(), *said])


def title(rig, arguments):
    run = lambda *argv: subprocess.run(argv, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    commit = run("git", "rev-parse", "--short", "HEAD") + ("+" if run("git", "status", "--porcelain") else "")
    with open("/proc/cpuinfo") as lines:
        model = re.search(r"model name\s*:\s*(.*)", lines.read())
    version = subprocess.run([which("nginx"), "-v"], capture_output=True, text=True).stderr.split("/")[-1].strip()
    return (
        f"Measured on {datetime.date.today()}, commit {commit}, {os.cpu_count()} CPUs "
        f"({model.group(1) if model else platform.machine()}) with a load of {arguments.load:.1f} before it began, Linux "
        f"{platform.release()}, nginx {version}; by benches/compare.py, {arguments.rounds} rounds of {arguments.seconds} "
        f"seconds. The small call has {rig.shape}; the steady calls are made by {generator()}."
    )


def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--only", type=lambda text: text.split(","), default=PARTS)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--body", type=int, default=200)
    parser.add_argument("--headers", type=int, default=5)
    parser.add_argument("--reply", type=int, default=150)
    parser.add_argument("--reply-headers", type=int, default=0)
    parser.add_argument("--errcode", choices=["first", "last", "none"], default="first")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    if strangers := set(arguments.only) - set(PARTS):
        parser.error(f"there is no part {', '.join(strangers)}; the parts are {', '.join(PARTS)}")
    if arguments.headers < 5 or min(arguments.rounds, arguments.seconds) < 1:
        parser.error("it takes 5 headers, 1 round and 1 second at least")
    arguments.load = os.getloadavg()[0]
    return arguments


def main():
    arguments = read_arguments()
    more = [] if arguments.check else ["wrk", "strace", "curl", "valgrind"]
    need("nginx", "lua", "cjson", "haproxy", "openssl", *more)
    if not os.path.exists(bench.SIDECAR):
        raise SystemExit(f"{bench.SIDECAR} is not there; cargo build --release --locked")
    # Whatever ends the bench, what it started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    shape = Shape(arguments.body, arguments.reply, arguments.headers, arguments.reply_headers, arguments.errcode)
    rig = Rig(shape)
    try:
        if arguments.check:
            for tls in [False, True]:
                for peer in peers(rig):
                    process = peer.start(tls)
                    peer.check()
                    bench.calls(peer.port, 3, shape)
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
