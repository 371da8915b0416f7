"""The dashboard and the alert rules of examples/grafana, held to the /metrics of a sidecar that runs: every metric, every
label and every label's value they name is there. And to what they refer to themselves: panels, variables, runbooks.
Writes the dashboard's queries as rules, for promtool to parse. Arguments: the URL of /metrics, the file to write.
"""

import json
import re
import sys
import urllib.request

import yaml

URL, RULES = sys.argv[1:]
DASHBOARD, ALERTS = "examples/grafana/dashboard.json", "examples/grafana/alerts.yaml"
# What Prometheus itself adds to whatever it scrapes.
TARGET_LABELS = {"job", "instance"}
problems = []


def wrong(where, what):
    problems.append(f"{where}: {what}")


# What is there: a metric's labels, and a label's values.
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
exposition = direct.open(URL, timeout=30).read().decode()
live = {}
values = {}
for line in exposition.splitlines():
    if line and not line.startswith("#"):
        name, labels = re.match(r"(\w+)(?:\{(.*)\})? \S+$", line).groups()
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels or ""))
        live.setdefault(name, set()).update(pairs)
        for label, value in pairs.items():
            values.setdefault((name, label), set()).add(value)
assert len(live) > 20, f"{URL} is no /metrics of ours: {sorted(live)}"

# A value that this sidecar has had no reason to show is one of the words that labels are made of.
WORDS = ("src/metrics/labels.rs", "src/error.rs", "src/token/keeper/counts.rs", "src/token/source/errcode.rs")
source = "\n".join(open(path).read() for path in WORDS)


def check_query(where, query):
    """Metrics, labels and values of a query in PromQL, with Grafana's variables in it."""
    named = []
    for name, matchers in re.findall(r"\b([a-zA-Z_:][\w:]*)(?:\{([^}]*)\})?", re.sub(r'"[^"]*"(?!\s*[,}])', '""', query)):
        if not re.match(r"(wechat_sidecar|process)_", name):
            continue
        named.append(name)
        if name not in live:
            wrong(where, f"there is no metric {name}")
            continue
        for label, _, text in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            if label in TARGET_LABELS:
                continue
            if label not in live[name]:
                wrong(where, f"{name} has no label {label}, but {sorted(live[name])}")
            elif not text.startswith("$"):
                for value in text.split("|"):
                    if value not in values[name, label] and f'"{value}"' not in source:
                        wrong(where, f"{name} never has {label}={value}")
    if not named:
        wrong(where, f"names no metric of ours: {query}")
    known = set().union(*(live.get(name, set()) for name in named)) | TARGET_LABELS
    for group in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", query):
        for label in re.findall(r"\w+", group):
            if label not in known:
                wrong(where, f"groups by {label}, which {named} have not")
    return known


dashboard = json.load(open(DASHBOARD))
variables = {variable["name"] for variable in dashboard["templating"]["list"]}
queries = []
cells = {}
panels = dashboard["panels"]
if len({panel["id"] for panel in panels}) != len(panels):
    wrong(DASHBOARD, "two panels have one id")
for panel in panels:
    where = f'{DASHBOARD}, panel "{panel["title"]}"'
    place = panel["gridPos"]
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            if x >= 24 or (x, y) in cells:
                wrong(where, f'it lies on "{cells.get((x, y), "the edge")}"')
                break
            cells[x, y] = panel["title"]
    if panel["type"] == "row":
        continue
    if not panel.get("description"):
        wrong(where, "it does not say what it shows")
    if not panel["targets"]:
        wrong(where, "it asks nothing")
    for target in panel["targets"]:
        known = check_query(where, target["expr"])
        for label in re.findall(r"\{\{\s*(\w+)\s*\}\}", target["legendFormat"]):
            if label not in known:
                wrong(where, f"its legend has {label}, which its metrics have not")
        queries.append(target["expr"])
for variable in dashboard["templating"]["list"]:
    if variable["type"] == "query":
        metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
        known = check_query(f'{DASHBOARD}, variable {variable["name"]}', metric)
        if label not in known:
            wrong(DASHBOARD, f'variable {variable["name"]} is of a label {label} that is not there')
        queries.append(metric)
for name in re.findall(r"\$\{?(\w+)", json.dumps(dashboard)):
    if name not in variables and not name.startswith("__"):
        wrong(DASHBOARD, f"there is no variable {name}")


def heading(line):
    """What GitHub makes of a heading."""
    text = re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower())
    return text.replace(" ", "-")


fence = re.compile(r"^```.*?^```", re.M | re.S)
anchors = {heading(line) for line in fence.sub("", open("README.md").read()).splitlines() if line.startswith("#")}
told = open("examples/grafana/README.md").read()
alerts = [rule for group in yaml.safe_load(open(ALERTS))["groups"] for rule in group["rules"]]
for alert in alerts:
    where = f'{ALERTS}, {alert["alert"]}'
    known = check_query(where, alert["expr"])
    # An aggregation has only the labels it groups by; what it has not would be empty in the message.
    grouped = re.match(r"(?:\w+\([^(]*)?(?:sum|min|max|count) by \(([^)]*)\)", alert["expr"])
    has = set(re.findall(r"\w+", grouped[1])) if grouped else known
    words = alert["annotations"]
    for label in re.findall(r"\$labels\.(\w+)", json.dumps(words)):
        if label not in has:
            wrong(where, f"its words have {label}, which its expression has not")
    for annotation in ("summary", "description", "runbook_url"):
        if not words.get(annotation):
            wrong(where, f"it has no {annotation}")
    _, _, anchor = words.get("runbook_url", "").partition("/README.md#")
    if anchor not in anchors:
        wrong(where, f"the README has no heading for #{anchor}")
    if f'`{alert["alert"]}`' not in told:
        wrong(where, "examples/grafana/README.md does not speak of it")
    if alert["labels"]["severity"] not in ("critical", "warning"):
        wrong(where, "it has no severity")
for name in re.findall(r"`(WechatSidecar\w+)`", told):
    if name not in [alert["alert"] for alert in alerts]:
        wrong("examples/grafana/README.md", f"there is no alert {name}")

if problems:
    sys.exit("\n".join(["the dashboard or the alerts are wrong:", *problems]))


def plain(query):
    return re.sub(r"\$\{?\w+\}?", ".*", query.replace("$__rate_interval", "5m"))


rules = [{"record": f"dashboard:query:{n}", "expr": plain(query)} for n, query in enumerate(queries)]
with open(RULES, "w") as file:
    json.dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)
shown = {name for query in queries for name in re.findall(r"wechat_sidecar_\w+", query)}
unseen = {name for name in live if name.startswith("wechat_sidecar_")} - shown
unseen = {name for name in unseen if not re.search(r"_(sum|count|bucket)$", name)}
if unseen:
    sys.exit(f"the dashboard shows nothing of {sorted(unseen)}")
print(f"{len(queries)} queries and {len(alerts)} alerts name nothing that a live /metrics has not; every metric of ours is shown")
