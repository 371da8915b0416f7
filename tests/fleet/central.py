"""A central token server and 64 followers that hold no secret: one fetch upstream a life, a rotation costs one, and the
server restarts without a failed call."""

import os
import signal

from fleet import Fleet, Load, Sidecar, check, direct, equal, fetches, free_port, kill_token, until, verdict
from rig import APPID, TMP, Simulator

FOLLOWERS = 64
KEY = "central-key-0123456789abcdef"


def keys():
    path = os.path.join(TMP, "central-keys.txt")
    with open(path, "w") as file:
        file.write("# the fleet's\n%s %s\n" % (KEY, APPID))
    one = os.path.join(TMP, "central-key.txt")
    with open(one, "w") as file:
        file.write(KEY + "\n")
    return path, one


def run(endpoint):
    kind = "classic" if endpoint == "token" else "stable"
    listed, own = keys()
    with Simulator() as wechat:
        port = free_port()
        # Its port has to be the same after a restart.
        server = lambda: CentralServer(wechat, endpoint, listed, port)  # noqa: E731
        central = server()
        flags = ["--appid", APPID, "--upstream", wechat.plain, "--central", "http://127.0.0.1:%d" % port,
                 "--central-key-file", own]
        name = "64 followers, %s" % endpoint
        with Fleet(flags, FOLLOWERS, name="sidecar-follower") as fleet:
            equal(name + ": one fetch for all", fetches(wechat), 1)
            last = fleet.agreed()
            with Load(fleet.sidecars, pause=0.2) as load:
                for n in range(4):
                    before = fetches(wechat)
                    kill_token(wechat, n, kind)
                    load.until_all_called()
                    last = fleet.agreed(but=last)
                    cost = fetches(wechat) - before
                    check("%s: death %d costs one fetch" % (name, n), cost == 1, 1, cost)
                central.stop(signal.SIGTERM)
                load.until_all_called()
                central = server()
                load.until_all_called()
                central.kill()
                load.until_all_called()
                central = server()
                until("it is ready", lambda: central.readiness()["ready"])
                load.until_all_called()
                kill_token(wechat, 1, kind)
                load.until_all_called()
                fleet.agreed(but=last)
            verdict(name + ", restarts included", wechat, load)
            with open(os.environ["E2E_TMP"] + "/secret.txt") as file:
                secret = file.read().strip()
            environments = [open("/proc/%d/environ" % s.popen.pid).read() + open("/proc/%d/cmdline" % s.popen.pid).read()
                            for s in fleet.sidecars]
            check(name + ": none has the secret, or a key in its command line",
                  not any(secret in text or KEY in text for text in environments), "", "")
        central.stop()


class CentralServer(Sidecar):
    def __init__(self, wechat, endpoint, listed, port):
        flags = direct(wechat, "--token-endpoint", endpoint, "--central-keys-file", listed)
        super().__init__("sidecar-central", flags, admin="127.0.0.1:%d" % port)


if __name__ == "__main__":
    for endpoint in ("stable_token", "token"):
        run(endpoint)
