"""What the binary is made of, checked without the network: every crate's licence, source and checksum, what is banned,
and second versions, by the rules of deny.toml. And the list itself, as a CycloneDX SBOM.

    supply.py check             after `cargo fetch`; says what is not checked
    supply.py sbom > sbom.json  CycloneDX 1.5; the same tree gives the same bytes

`cargo deny check` knows more (advisories, and the fine print of licences); tests/supply.sh runs it where it is
installed. The SBOM holds what is compiled into the Linux binary: no tools of the build, no tests.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"


def read(name):
    with open(os.path.join(ROOT, name), "rb") as file:
        return tomllib.load(file)


def metadata(*more):
    argv = ["cargo", "metadata", "--locked", "--offline", "--format-version", "1", *more]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit("FAIL cargo metadata: " + done.stderr.strip()[-500:])
    return json.loads(done.stdout)


def licensed(expression, allowed):
    """Whether an SPDX expression can be met by what is allowed. `/` is how some wrote OR."""
    tokens = re.findall(r"\(|\)|[^\s()/]+|/", expression)
    at = 0

    def peek():
        return tokens[at] if at < len(tokens) else None

    def take():
        nonlocal at
        at += 1
        return tokens[at - 1]

    def either():
        good = both()
        while peek() in ("OR", "/"):
            take()
            good = both() or good
        return good

    def both():
        good = one()
        while peek() == "AND":
            take()
            good = one() and good
        return good

    def one():
        name = take()
        if name == "(":
            good = either()
            take()
            return good
        if peek() == "WITH":
            take()
            name += " WITH " + take()
        return name in allowed

    return either() and at == len(tokens)


def linked(meta):
    """The packages in the binary: reached without dev- and build-dependencies and macros, ours first."""
    nodes = {node["id"]: node for node in meta["resolve"]["nodes"]}
    packages = {package["id"]: package for package in meta["packages"]}
    macro = lambda package: any("proc-macro" in target["kind"] for target in package["targets"])
    todo, seen = [meta["resolve"]["root"]], []
    while todo:
        identity = todo.pop()
        if identity in seen:
            continue
        seen.append(identity)
        for dep in nodes[identity]["deps"]:
            normal = any(kind["kind"] is None for kind in dep["dep_kinds"])
            if normal and not macro(packages[dep["pkg"]]):
                todo.append(dep["pkg"])
    return [packages[identity] for identity in seen], nodes


def problems():
    deny, lock = read("deny.toml"), read("Cargo.lock")
    allowed = set(deny["licenses"]["allow"])
    banned = {ban["crate"] for ban in deny["bans"]["deny"]}
    skipped = {skip["crate"] for skip in deny["bans"]["skip"]}
    sums = {(p["name"], p["version"]): p.get("checksum") for p in lock["package"]}
    meta = metadata()
    ours = meta["resolve"]["root"]
    here = {package["id"] for target in deny["graph"]["targets"] for package in linked(metadata("--filter-platform", target))[0]}
    versions = {}
    for package in meta["packages"]:
        name, version = package["name"], package["version"]
        if package["id"] == ours:
            continue
        if not package["license"] or not licensed(package["license"], allowed):
            yield "%s %s is licensed %s; allow it in deny.toml, or do without" % (name, version, package["license"])
        if package["source"] != CRATES_IO:
            yield "%s %s comes from %s and not from crates.io" % (name, version, package["source"])
        if not sums.get((name, version)):
            yield "%s %s has no checksum in Cargo.lock" % (name, version)
        if name in banned:
            yield "%s is banned by deny.toml" % name
        if "-" in version.split("+")[0]:
            yield "%s %s is no stable release" % (name, version)
        if package["id"] in here and not any(f"{name}@{version}".startswith(skip) for skip in skipped):
            versions.setdefault(name, []).append(version)
    for name, several in versions.items():
        if len(several) > 1:
            yield "%s is in the binary in versions %s; skip one in deny.toml, with a reason" % (name, " and ".join(several))
    for dependency in next(p for p in meta["packages"] if p["id"] == ours)["dependencies"]:
        if dependency["req"] == "*":
            yield "%s is asked for in any version" % dependency["name"]
    print("     %d crates, %d of them in the binary on Linux" % (len(meta["packages"]) - 1, len(here) - 1))


def check():
    # The reader of licences can fail, too.
    for expression, good in (("MIT OR GPL-3.0", True), ("MIT AND GPL-3.0", False), ("(GPL-3.0 OR MIT) AND ISC", True),
                             ("GPL-3.0/MIT", True), ("Apache-2.0 WITH LLVM-exception", False), ("GPL-3.0", False)):
        assert licensed(expression, {"MIT", "ISC"}) == good, expression
    found = list(problems())
    for problem in found:
        print("FAIL " + problem)
    if not found:
        print("ok   licences, sources, checksums, bans and second versions are as deny.toml says")
    made = sbom()
    assert made == sbom() and json.loads(made)["components"], "the same tree gives the same bytes"
    print("ok   an SBOM can be made, of %d components" % len(json.loads(made)["components"]))
    return bool(found)


def sbom():
    lock = read("Cargo.lock")
    sums = {(p["name"], p["version"]): p.get("checksum") for p in lock["package"]}
    meta = metadata("--filter-platform", "x86_64-unknown-linux-gnu")
    packages, nodes = linked(meta)
    purl = lambda p: "pkg:cargo/%s@%s" % (p["name"], p["version"])
    by_id = {package["id"]: package for package in packages}

    def component(package, kind):
        out = {"type": kind, "bom-ref": purl(package), "name": package["name"], "version": package["version"],
               "purl": purl(package), "licenses": [{"expression": package["license"].replace("/", " OR ")}]}
        if checksum := sums.get((package["name"], package["version"])):
            out["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        return out

    ours, others = packages[0], sorted(packages[1:], key=purl)
    with open(os.path.join(ROOT, "Cargo.lock"), "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    serial = "%s-%s-%s-%s-%s" % (digest[:8], digest[8:12], "5" + digest[13:16], "8" + digest[17:20], digest[20:32])
    depends = [{"ref": purl(p), "dependsOn": sorted(
        purl(by_id[d["pkg"]]) for d in nodes[p["id"]]["deps"] if d["pkg"] in by_id and any(k["kind"] is None for k in d["dep_kinds"]))}
        for p in [ours, *others]]
    return json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.5", "serialNumber": "urn:uuid:" + serial, "version": 1,
                       "metadata": {"component": component(ours, "application")},
                       "components": [component(p, "library") for p in others], "dependencies": depends}, indent=1) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["check"]:
        sys.exit(check())
    if sys.argv[1:] == ["sbom"]:
        print(sbom(), end="")
    else:
        sys.exit(__doc__)
