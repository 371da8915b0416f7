#!/usr/bin/env python3
"""Counts the user instructions of one call, and of parts of it: `python3 benches/instructions.py`, from anywhere.

    --accept   takes what is counted for the new baseline

Instructions do not depend on what else a machine does, so a change that costs shows here at once. The counts are held
against benches/instructions.baseline; more than 5 % above it fails. A compiler or a processor with other vector
instructions counts differently: accept a baseline of your own before a change, and compare after it.

An exchange is one small call (see rig.py) before a plain upstream: callgrind counts a run with 300 calls and one with
1,300, and the difference is theirs alone.

Needs: apt-get install nginx valgrind openssl
"""

import json
import os
import re
import subprocess
import sys
import time

import rig as bench
from rig import HERE, ROOT, Peer, Rig, calls, free_ports, need

BASELINE = os.path.join(HERE, "instructions.baseline")
MOST = 1.05
CALL = "exchange"
PARTS = ["inject", "inspect", "route", "replay"]
VALGRIND = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]


def collected(said):
    count = re.search(r"Collected\s*:\s*(\d+)", said)
    if not count:
        raise SystemExit(f"callgrind did not count:\n{said}")
    return int(count.group(1))


def exchange(rig, count, *more, name="wechat-sidecar", **settings):
    """The instructions of a whole run with so many calls."""
    peer = Peer(rig, name, *free_ports(2))
    argv, env = peer.command(tls=False, **settings)
    if name == "nginx":
        more = ["-g", "master_process off;"]
    said = rig.path("callgrind")
    with open(said, "w") as file:
        process = rig.start([*VALGRIND, *argv, *more], peer.port, env=env, stderr=file)
    calls(peer.port, count, rig.shape)
    time.sleep(0.2)
    process.stop()
    with open(said) as file:
        return collected(file.read())


def counted(path, part, times):
    ran = subprocess.run([*VALGRIND, path, part, str(times)], capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    return collected(ran.stderr)


def difference(count, few, many):
    return (count(many) - count(few)) / (many - few)


def exchanges(rig, *names):
    """What a call costs, as it is and with more to do: (name, instructions); `names` tells which peers come after."""
    accounts = "".join(
        f'[[account]]\nappid = "wx{n:016x}"\nsecret = "{n:032x}"\n' for n in range(1, 21)
    )
    many = rig.write("accounts.toml", accounts)
    os.chmod(many, 0o600)
    # Half of them where the call's own rule is, which comes last.
    rules = [f"{way}/of{n}" for n in range(100) for way in ("POST /cgi-bin/message", "/wxa/business/*")][1:]
    rules.append("POST " + bench.PATH.split("?")[0])
    rules = rig.write("rules.toml", f"allow = {json.dumps(rules)}\n")
    for name, more, settings in [
        (CALL, [], {}),
        (f"{CALL}, access line on", [], {"log": "info"}),
        (f"{CALL}, 20 more accounts", ["--config", many], {}),
        (f"{CALL}, 200 allow rules", ["--config", rules], {}),
        *((f"{CALL}, {name}", [], {"name": name}) for name in names),
    ]:
        yield name, round(difference(lambda n: exchange(rig, n, *more, **settings), 300, 1300))


def parts():
    built = subprocess.run(
        ["cargo", "bench", "--locked", "--bench", "parts", "--no-run", "--message-format=json"],
        cwd=ROOT, capture_output=True, text=True,
    )
    if built.returncode:
        raise SystemExit(built.stderr)
    lines = [json.loads(line) for line in built.stdout.splitlines()]
    path = next(line["executable"] for line in lines if line.get("target", {}).get("name") == "parts" and line.get("executable"))
    for part in PARTS:
        run = lambda n: counted(path, part, n)
        yield part, round(difference(run, 1000, 3000))


def main():
    need("nginx", "valgrind", "openssl")
    if not os.path.exists(bench.SIDECAR):
        raise SystemExit(f"{bench.SIDECAR} is not there; cargo build --release --locked")
    rig = Rig()
    try:
        figures = dict([*exchanges(rig), *parts()])
    finally:
        rig.stop()
    if "--accept" in sys.argv:
        version = subprocess.run(["rustc", "--version"], capture_output=True, text=True).stdout.strip()
        with open(BASELINE, "w") as file:
            file.write(f"# User instructions each; {version}. Written by benches/instructions.py --accept.\n")
            file.writelines(f"{name}: {count}\n" for name, count in figures.items())
    with open(BASELINE) as file:
        lines = [line.rsplit(": ", 1) for line in file if not line.startswith("#")]
    baseline = {name: int(count) for name, count in lines}
    dearer = []
    for name, count in figures.items():
        before = baseline.get(name)
        change = f"{count / before - 1:+.1%}" if before else "no baseline"
        print(f"{name:28} {count:8} {change}")
        if before and count > MOST * before:
            dearer.append(name)
    if dearer:
        raise SystemExit(
            f"\nDEARER: {', '.join(dearer)} by more than 5 %. Find out why (callgrind_annotate tells by function); if it "
            "is worth it, say so in the commit and take the new figures: python3 benches/instructions.py --accept"
        )


if __name__ == "__main__":
    main()
