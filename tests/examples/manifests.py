"""The manifests of examples/kubernetes and examples/compose: every reference leads somewhere, the app never gets the
AppSecret, and the sidecars are as tight as the README says. Then the built binary is asked to take every environment
and every probe they give it. Arguments: the binary, the simulation's URL, an empty folder.
"""

import glob
import os
import re
import subprocess
import sys

import kubernetes_validate
import yaml

# The oldest that runs native sidecars without a feature gate, and the newest there are schemas for.
VERSIONS = ("1.29", kubernetes_validate.latest_version())

BINARY, UPSTREAM, WORK = sys.argv[1:]
APPID, SECRET = "wx0123456789abcdef", "0123456789abcdef0123456789abcdef"
FILES = {
    "WECHAT_SIDECAR_SECRET_FILE": SECRET,
    "WECHAT_SIDECAR_CLIENT_KEYS_FILE": "0123456789abcdef0123456789abcdef01234567 wx0123456789abcdef",
    "WECHAT_SIDECAR_STORE_KEY_FILE": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
}
problems = []


def wrong(where, what):
    problems.append(f"{where}: {what}")


def expect(holds, where, what):
    if not holds:
        wrong(where, what)


# What the Dockerfile makes.
docker = open("Dockerfile").read()
USER, GROUP = map(int, re.search(r"^USER (\d+):(\d+)$", docker, re.M).groups())
ENTRYPOINT = re.search(r'^ENTRYPOINT \["(.*)"\]$', docker, re.M).group(1)

documents = {}
for path in sorted(glob.glob("examples/kubernetes/*.yaml")):
    documents[path] = [document for document in yaml.safe_load_all(open(path)) if document]
kinds = sorted({document["kind"] for found in documents.values() for document in found})
assert {"CronJob", "Deployment", "NetworkPolicy", "PodMonitor", "Service"} <= set(kinds), kinds


def pods():
    """Where a pod is described, its kind, its labels and its spec."""
    for path, found in documents.items():
        for document in found:
            spec = document["spec"]
            if document["kind"] == "CronJob":
                spec = spec["jobTemplate"]["spec"]
            if "template" in spec:
                name = f'{path}, {document["kind"]} {document["metadata"]["name"]}'
                yield name, document, spec["template"]["metadata"]["labels"], spec["template"]["spec"]


def containers(spec):
    return spec.get("initContainers", []) + spec["containers"]


def ports(spec):
    return {port["name"] for container in containers(spec) for port in container.get("ports", [])}


def selected(selector):
    """The pods a selector means."""
    for name, _, labels, spec in pods():
        matches = selector.get("matchLabels", {}).items() <= labels.items()
        for expression in selector.get("matchExpressions", []):
            assert expression["operator"] == "In", expression
            matches = matches and labels.get(expression["key"]) in expression["values"]
        if matches:
            yield name, spec


def check_pod(where, document, labels, spec):
    if document["kind"] == "Deployment":
        selector = document["spec"]["selector"]["matchLabels"]
        expect(selector.items() <= labels.items(), where, f"its selector {selector} does not select its own pods")
    expect(spec.get("automountServiceAccountToken") is False, where, "it mounts a token of the cluster")
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    mounted = set()
    for container in containers(spec):
        ours = container["name"] == "wechat-sidecar"
        here = f'{where}, container {container["name"]}'
        for mount in container.get("volumeMounts", []):
            mounted.add(mount["name"])
            expect(mount["name"] in volumes, here, f'there is no volume {mount["name"]}')
            expect("subPath" not in mount, here, "a subPath does not follow a changed Secret")
            secret = volumes.get(mount["name"], {}).get("secret", {})
            private = secret.get("secretName") == "wechat-appsecret" or (
                secret.get("secretName") == "wechat-sidecar-ca" and "items" not in secret
            )
            expect(ours or not private, here, f'it can read {secret.get("secretName")}')
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            handler = next(
                (v for k, v in container.get(kind, {}).items() if k in ("exec", "httpGet", "tcpSocket")), {}
            )
            named = {port["name"] for port in container.get("ports", [])}
            expect(handler.get("port") in (None, *named), here, f"{kind} asks a port that has no such name")
        if ours:
            check_sidecar(here, spec, container, volumes)
    expect(mounted == set(volumes), where, f"volumes nobody mounts: {set(volumes) - mounted}")


def check_sidecar(where, spec, sidecar, volumes):
    native = sidecar in spec.get("initContainers", [])
    expect(not native or sidecar.get("restartPolicy") == "Always", where, "without restartPolicy it is no sidecar")
    security = sidecar["securityContext"]
    expect(security == {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": GROUP,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }, where, f"its securityContext is {security}")
    expect("startupProbe" in sidecar, where, "the app does not wait for a token")
    environment = {entry["name"]: entry["value"] for entry in sidecar["env"]}
    expect("WECHAT_SIDECAR_SECRET" not in environment, where, "the AppSecret is in a variable")
    mounts = {m["mountPath"]: volumes.get(m["name"], {}).get("secret", {}) for m in sidecar["volumeMounts"]}
    for name in FILES:
        if path := environment.get(name):
            folder, _, file = path.rpartition("/")
            # Without items, a file is a key of the Secret, which the README makes.
            items = mounts.get(folder, {}).get("items", [{"path": file}] if folder in mounts else [])
            expect(file in [item["path"] for item in items], where, f"nothing is where {name} looks")
    for mount in mounts.values():
        # Kubernetes' files are root's: either everyone in the container may read them, or its group is the pod's.
        mode, group = mount.get("defaultMode", 0o644), spec.get("securityContext", {}).get("fsGroup")
        readable = mode & 0o004 or (mode & 0o040 and group == GROUP)
        expect(readable, where, f"user {USER} cannot read what is mounted with mode {mode:o}")
    if ":443" in environment.get("WECHAT_SIDECAR_TLS_LISTEN", ""):
        sysctls = {entry["name"]: entry["value"] for entry in spec["securityContext"]["sysctls"]}
        expect(sysctls.get("net.ipv4.ip_unprivileged_port_start") == "443", where, "it may not listen on 443")
        expect("127.0.0.1" in [alias["ip"] for alias in spec["hostAliases"]], where, "no name leads to it")
    grace = int(re.fullmatch(r"(\d+)s", environment["WECHAT_SIDECAR_GRACE_PERIOD"]).group(1))
    grace += int(re.fullmatch(r"(\d+)s", environment.get("WECHAT_SIDECAR_DRAIN_DELAY", "0s")).group(1))
    expect(spec["terminationGracePeriodSeconds"] > grace, where, "Kubernetes kills it before its grace_period is over")
    accepts(where, environment)
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        if command := sidecar.get(kind, {}).get("exec", {}).get("command"):
            expect(command[0] == ENTRYPOINT, where, f"{kind} runs {command[0]}, and the image has {ENTRYPOINT}")
            runs(f"{where}, {kind}", command[1:])


def run(arguments, environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WECHAT_SIDECAR_")}
    return subprocess.run(
        [BINARY, *arguments], env=clean | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )


def accepts(where, environment):
    """`check` takes the environment, with the files it names, and with the simulation as WeChat."""
    given = dict(environment)
    for name, value in environment.items():
        if not value.startswith("/"):
            continue
        given[name] = f"{WORK}{value}"
        if name in FILES:
            os.makedirs(os.path.dirname(given[name]), exist_ok=True)
            with open(given[name], "w") as file:
                file.write(f"{FILES[name]}\n")
    # There is no such Redis here; that its address can be read is what is asked.
    store = environment.get("WECHAT_SIDECAR_STORE", "memory")
    given["WECHAT_SIDECAR_STORE"] = re.sub(r"//[\w-]+:\d+", "//127.0.0.1:9", store)
    if ca := given.get("WECHAT_SIDECAR_CA_DIR"):
        made = run(["ca", "--dir", ca], {})
        expect(made.returncode == 0, where, made.stderr)
        # For the very names it is to be: as written, not as the simulation's.
        given["WECHAT_SIDECAR_UPSTREAM_ADDRESS"] = "127.0.0.1:9"
    else:
        given["WECHAT_SIDECAR_UPSTREAM"] = UPSTREAM
    done = run(["check"], given)
    said = done.stdout + done.stderr
    expect("ok       the settings are valid" in done.stdout, where, f"the binary does not take its settings:\n{said}")
    alone = not ca and store == "memory"
    expect(not alone or done.returncode == 0, where, f"check ends with {done.returncode}:\n{said}")


def runs(where, command):
    """A probe's command is one the binary knows: not ready is 1, a bad command line 64."""
    done = run(command, {"WECHAT_SIDECAR_ADMIN_LISTEN": "127.0.0.1:9"})
    expect(done.returncode == 1, where, f"{command} ends with {done.returncode}: {done.stderr}")


# What Kubernetes itself would say. It has no schema for the Prometheus operator's kinds.
judged = 0
for path, found in documents.items():
    for document in found:
        if document["apiVersion"].startswith("monitoring.coreos.com/"):
            continue
        for version in VERSIONS:
            judged += 1
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                place = ".".join(map(str, error.path))
                wrong(path, f'{document["kind"]}: Kubernetes {version} does not take {place}: {error.message}')
assert judged >= 2 * len(documents), judged

for found in pods():
    check_pod(*found)

for path, found in documents.items():
    for document in found:
        where = f'{path}, {document["kind"]} {document["metadata"]["name"]}'
        spec = document["spec"]
        if document["kind"] == "Service":
            targets = list(selected({"matchLabels": spec["selector"]}))
            expect(targets, where, "it selects nothing")
            for port in spec["ports"]:
                expect(all(port["targetPort"] in ports(pod) for _, pod in targets), where, f"no port {port}")
                expect(port["targetPort"] != "admin", where, "the admin port is for probes and Prometheus only")
        elif document["kind"] == "PodMonitor":
            targets = list(selected(spec["selector"]))
            expect(targets, where, "it selects nothing")
            for endpoint in spec["podMetricsEndpoints"]:
                expect(all(endpoint["port"] in ports(pod) for _, pod in targets), where, f'no port {endpoint["port"]}')
        elif document["kind"] == "PodDisruptionBudget":
            expect(list(selected(spec["selector"])), where, "it selects nothing")
        elif document["kind"] == "NetworkPolicy":
            targets = list(selected(spec["podSelector"]))
            expect(targets, where, "it selects nothing")
            for rule in spec.get("ingress", []):
                expect(rule.get("from") and rule.get("ports"), where, "a rule lets everyone in, or to every port")
                for port in rule.get("ports", []):
                    expect(all(port["port"] in ports(pod) for _, pod in targets), where, f"no port {port}")

# The README makes every Secret that is mounted.
readme = open("examples/kubernetes/README.md").read()
for name, _, _, spec in pods():
    for volume in spec.get("volumes", []):
        secret = volume["secret"]["secretName"]
        expect(f"secret generic {secret} " in readme, name, f"the README makes no Secret {secret}")
for path in documents:
    expect(os.path.basename(path) in readme, path, "the README does not speak of it")

# Compose.
path = "examples/compose/compose.yaml"
compose = yaml.safe_load(open(path))
services = compose["services"]
sidecar, app = services["wechat-sidecar"], services["app"]
expect(app["network_mode"] == "service:wechat-sidecar", path, "the app is in another network")
expect("WECHAT_SIDECAR_LISTEN" not in sidecar["environment"], path, "loopback is enough")
expect(not app.get("secrets"), path, "the app can read the AppSecret")
expect(sidecar["read_only"] is True and sidecar["cap_drop"] == ["ALL"], path, "the sidecar may more than it needs")
for name, service in services.items():
    for other, condition in service.get("depends_on", {}).items():
        expect(other in services, f"{path}, {name}", f"there is no service {other}")
        healthy = other == "wechat-sidecar" or "healthcheck" in services[other]
        expect(condition["condition"] != "service_healthy" or healthy, f"{path}, {name}", f"{other} has no health check")
    for secret in service.get("secrets", []):
        expect(secret in compose["secrets"], f"{path}, {name}", f"there is no secret {secret}")
given = {"WECHAT_APPID": APPID}
environment = {
    # ${NAME:-default} and ${NAME:?what to do}
    name: re.sub(r"\$\{(\w+):.([^}]*)\}", lambda found: given.get(found[1], found[2]), value)
    for name, value in sidecar["environment"].items()
}
accepts(path, environment)

# systemd: %d is where the credential is.
path = "examples/systemd/wechat-sidecar.service"
unit = open(path).read()
environment = dict(re.findall(r"^Environment=(\w+)=(.*)$", unit, re.M))
credential = re.search(r"^LoadCredential=(\w+):", unit, re.M).group(1)
expect(environment["WECHAT_SIDECAR_SECRET_FILE"] == f"%d/{credential}", path, "the credential is not where it looks")
accepts(path, {name: value.replace("%d", "/credentials") for name, value in environment.items()})

if problems:
    sys.exit("\n".join(["the examples are wrong:", *problems]))
count = sum(map(len, documents.values()))
print(f"{count} documents for Kubernetes {' and '.join(VERSIONS)}, Compose and systemd: every reference leads somewhere, and")
print("the binary takes their settings and probes")
