"""Sixteen sidecars, the classic endpoint, one Redis: through 50 expiries and 50 rotations by someone else, under load,
each costs exactly one fetch in total and no app notices. Then the same with the stable endpoint and no store at all, and
with clocks an hour apart."""

import glob
import os
import time

from fleet import Fleet, Load, Redis, check, direct, equal, fetches, kill_token, until, verdict
from rig import Simulator

SIZE, DEATHS = 16, 100


def deaths(name, wechat, fleet, load, times):
    """Kills the token over and over, and counts what each death cost."""
    dear, last = {}, fleet.agreed()
    for n in range(times):
        before = fetches(wechat)
        kill_token(wechat, n)
        last = fleet.agreed(but=last)
        load.until_all_called()
        cost = fetches(wechat) - before
        if cost != 1:
            dear[n] = cost
    equal(name + ": each of %d deaths costs one fetch" % times, dear, {})


def classic():
    with Simulator() as wechat, Redis() as redis:
        flags = direct(wechat, "--store", redis.url, "--token-endpoint", "token")
        with Fleet(flags, SIZE) as fleet:
            equal("16 that start together fetch once", fetches(wechat), 1)
            with Load(fleet.sidecars) as load:
                deaths("16, classic, one Redis", wechat, fleet, load, DEATHS)
            verdict("16, classic, one Redis", wechat, load)
            refused = wechat.ask("/counts")["refusals"]
            share = sum(refused.values()) / (DEATHS * SIZE)
            print("     %d calls; of 16 sidecars %.1f learn of a death by a refusal" % (load.calls(), share * SIZE))
            # One that is told before its next call never sees a refusal.
            keys = [key for key in redis.ask("KEYS", "*")]
            with open(os.environ["E2E_TMP"] + "/secret.txt") as file:
                secret = file.read().strip()
            check("keys hold the appid and no secret", keys and all(secret not in key for key in keys), "keys", keys)
            check("and no record holds it", all(secret not in str(redis.ask("GET", key)) for key in keys), "", "")


def quiet():
    """What one call at one sidecar finds out, the others know: none of their calls is refused."""
    with Simulator() as wechat, Redis() as redis:
        flags = direct(wechat, "--store", redis.url, "--token-endpoint", "token")
        with Fleet(flags, SIZE) as fleet:
            last = fleet.agreed()
            for sidecar in fleet.sidecars:
                sidecar.call()
            for n in range(6):
                wechat.ask("/reset_counts", {})
                kill_token(wechat, n)
                fleet.sidecars[n].call()
                last = fleet.agreed(but=last)
                answers = [sidecar.call() for sidecar in fleet.sidecars]
                twice = [head.get("x-wechat-sidecar-attempts") for _, head, _ in answers]
                refused = sum(wechat.ask("/counts")["refusals"].values())
                equal("death %d at one of 16 is one refusal and one fetch" % n, (refused, fetches(wechat), set(twice)),
                      (1, 1, {None}))


def ahead():
    """Short lives, that end by themselves: one of 16 renews for all, and none is ever without."""
    with Simulator() as wechat, Redis() as redis:
        wechat.ask("/limits", {"life": 12})
        flags = direct(wechat, "--store", redis.url, "--token-endpoint", "token")
        with Fleet(flags, SIZE) as fleet, Load(fleet.sidecars, pause=0.05) as load:
            seen = set()

            def lives():
                seen.update(fleet.fingerprints())
                return len(seen - {None}) >= 6

            until("six lives have passed", lives, 180)
            verdict("lives of 12 s", wechat, load)
            count = fetches(wechat)
            # The last of them may not have been seen.
            check("lives of 12 s: one fetch a life", count <= len(seen - {None}) + 1, len(seen), count)


def stable():
    with Simulator() as wechat, Fleet(direct(wechat), SIZE) as fleet:
        equal("16, stable, no store: they start with one fetch each", fetches(wechat), SIZE)
        with Load(fleet.sidecars) as load:
            last = fleet.agreed()
            for n in range(10):
                before = fetches(wechat)
                kill_token(wechat, n, "stable")
                last = fleet.agreed(but=last)
                load.until_all_called()
                cost = fetches(wechat) - before
                check("16, stable, no store: death %d costs each at most one fetch" % n, 1 <= cost <= SIZE, SIZE, cost)
        verdict("16, stable, no store", wechat, load)
        made = wechat.ask("/counts")["fetches"]["fresh"]
        # One at the start; each expiry makes one, each rotation is someone else's.
        equal("16, stable, no store: none voids another's", made, 1 + 5)


def clocks():
    """Half of the fleet lives an hour ahead. Only their wall clocks: nobody's hours are longer than another's."""
    library = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
    if not library:
        raise SystemExit("FAIL faketime is missing; install it: apt-get install faketime")
    with Simulator() as wechat, Redis() as redis:
        flags = direct(wechat, "--store", redis.url, "--token-endpoint", "token")
        # Not by the command of that name: it stays in between, and a signal would end it and not the sidecar.
        ahead = {"LD_PRELOAD": library[0], "FAKETIME": "+1h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        with Fleet(flags, 8, lambda n: ahead if n % 2 else None) as fleet:
            hours = {sidecar.log_text()[:13] for sidecar in fleet.sidecars}
            check("their clocks are an hour apart", len(hours) >= 2, "two hours", hours)
            equal("clocks an hour apart: they start with one fetch", fetches(wechat), 1)
            with Load(fleet.sidecars) as load:
                deaths("clocks an hour apart", wechat, fleet, load, 20)
            verdict("clocks an hour apart", wechat, load)
            lives = [s.readiness()["accounts"][0]["life_left_seconds"] for s in fleet.sidecars]
            check("clocks an hour apart: all know when it ends", max(lives) - min(lives) <= 30 and max(lives) <= 7200,
                  "within seconds", lives)


if __name__ == "__main__":
    for suite in (classic, quiet, ahead, stable, clocks):
        begun = time.monotonic()
        suite()
        print("     (%s: %d s)" % (suite.__name__, time.monotonic() - begun), flush=True)
