"""Searches everything the sidecars wrote at `--log trace` and everything clients received for the AppSecret and for
every token that an upstream issued."""

import base64
import os

from rig import TMP, check

# Any stretch of this length of a token is as bad as the whole, and a log line may cut one.
STRETCH = 24


def stretches():
    with open(os.path.join(TMP, "secret.txt")) as file:
        secret = file.read().strip()
    spoken = {secret: "the AppSecret", secret[:STRETCH]: "the AppSecret's beginning", secret[8:]: "the AppSecret's end"}
    spoken[base64.b64encode(secret.encode()).decode()] = "the AppSecret in base64"
    spoken[secret.encode().hex()] = "the AppSecret in hex"
    with open(os.path.join(TMP, "tokens.txt")) as file:
        tokens = sorted({line.strip() for line in file if len(line) > STRETCH})
    for number, token in enumerate(tokens):
        for at in (0, 3, len(token) // 2, len(token) - STRETCH):
            spoken[token[at : at + STRETCH]] = "token %d, from its character %d" % (number, at)
    return spoken, len(tokens)


def find(path, spoken):
    """What of it stands in a file. One set of all stretches of the file is faster than a search for each."""
    with open(path, "rb") as file:
        text = file.read().decode("latin-1")
    # Only runs of characters that a token may have can hold one.
    found = set()
    run = []
    allowed = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+/=")
    for word in "".join(c if c in allowed else " " for c in text).split():
        if len(word) >= STRETCH:
            run.append(word)
    for word in set(run):
        for at in range(len(word) - STRETCH + 1):
            piece = word[at : at + STRETCH]
            if piece in spoken:
                found.add(spoken[piece])
    found |= {what for part, what in spoken.items() if len(part) > STRETCH and part in text}
    return found


spoken, tokens = stretches()
check("secrecy: there are tokens to look for", tokens > 10, "more than 10", tokens)
for folder, whose in (("logs", "the sidecar's output"), ("received", "what clients received")):
    names = [name for name in sorted(os.listdir(os.path.join(TMP, folder))) if folder == "received" or name.startswith("sidecar")]
    size = sum(os.path.getsize(os.path.join(TMP, folder, name)) for name in names)
    check("secrecy: there is something of %s to search" % whose, size > 1000, "more than 1000 bytes", size)
    leaks = {name: sorted(found)[:3] for name in names if (found := find(os.path.join(TMP, folder, name), spoken))}
    check("secrecy: %s (%d KiB) holds neither the AppSecret nor any of %d tokens" % (whose, size >> 10, tokens),
          not leaks, "nothing", leaks)
