"""A Redis that is killed, restarted, paused, full, read-only or failed over under a fleet: it costs at most one fetch
more and no call. And the one who holds the lease, killed at each step of its work."""

import os
import socket
import threading
import time

from fleet import Fleet, Load, Redis, Sidecar, check, direct, equal, fetches, free_port, kill_token, until, verdict
from rig import Simulator

SIZE = 16


def classic(wechat, redis):
    return direct(wechat, "--store", redis.url, "--token-endpoint", "token")


def through(name, hurt, extra=0):
    """A fleet under load, through `hurt(wechat, redis, fleet, load)`, which may cost `extra` fetches; then a death."""
    with Simulator() as wechat, Redis() as redis, Fleet(classic(wechat, redis), SIZE) as fleet:
        with Load(fleet.sidecars, pause=0.05) as load:
            last = fleet.agreed()
            before = fetches(wechat)
            hurt(wechat, redis, fleet, load)
            load.until_all_called()
            cost = fetches(wechat) - before
            check(name + ": costs at most %d fetches" % extra, cost <= extra, extra, cost)
            # All have to find their way back to the store first.
            until("all listen to the store again", lambda: listeners(redis) >= SIZE)
            last = fleet.agreed()
            before = fetches(wechat)
            # Whichever kind of token they came to serve, it runs out.
            kill_token(wechat, 0)
            fleet.agreed(but=last)
            load.until_all_called()
            cost = fetches(wechat) - before
            check(name + ": after it, a death costs one fetch again", cost == 1, 1, cost)
        verdict(name, wechat, load)
        told = [sidecar.log_text().count("the token store fails") for sidecar in fleet.sidecars]
        check(name + ": said once each, not over and over", max(told) <= 3, 3, told)


def listeners(redis):
    """How many listen to the one account's channel."""
    channels = redis.ask("PUBSUB", "CHANNELS")
    return max((redis.ask("PUBSUB", "NUMSUB", channel)[1] for channel in channels), default=0)


def killed(wechat, redis, fleet, load):
    redis.kill()
    load.until_all_called(5)
    redis.start()
    until("the store has the token again", lambda: [k for k in redis.ask("KEYS", "*") if k.endswith("token")])


def dies_while_down(wechat, redis, fleet, load):
    """The worst hour: no store, and the token dies. WeChat lets two tokens live, so each may have to fetch."""
    redis.kill()
    wechat.ask("/expire", {})
    time.sleep(1)
    redis.start()


def paused(wechat, redis, fleet, load):
    redis.ask("CLIENT", "PAUSE", 10_000, "ALL")
    begun = load.calls()
    time.sleep(10)
    check("a pause of 10 s: calls go on", load.calls() > begun + SIZE, "calls", load.calls() - begun)
    until("redis answers again", redis.answers)


def full(wechat, redis, fleet, load):
    redis.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    redis.ask("CONFIG", "SET", "maxmemory", "1")
    kill_token(wechat, 1)
    load.until_all_called(3)
    redis.ask("CONFIG", "SET", "maxmemory", "0")


def garbage(wechat, redis, fleet, load):
    for key in redis.ask("KEYS", "*"):
        redis.ask("DEL", key)
        redis.ask("SET", key, b"\xff\x00 this is not ours")
    load.until_all_called(3)


def failover():
    """The address moves from a Redis that has the newest token to one that has an older one."""
    with Simulator() as wechat, Redis() as one, Redis() as two:
        relay = Relay(one.port)
        flags = direct(wechat, "--store", "redis://127.0.0.1:%d" % relay.port, "--token-endpoint", "token")
        with Fleet(flags, SIZE) as fleet, Load(fleet.sidecars, pause=0.05) as load:
            last = fleet.agreed()
            for key in one.ask("KEYS", "*"):
                if one.ask("TYPE", key) == "string":
                    two.ask("SET", key, one.ask("GET", key), "PX", max(1, one.ask("PTTL", key)))
            time.sleep(1.5)
            kill_token(wechat, 1)
            last = fleet.agreed(but=last)
            before = fetches(wechat)
            relay.to(two.port)
            one.kill()
            load.until_all_called(5)
            until("all listen to the new one", lambda: listeners(two) >= SIZE)
            time.sleep(12)
            equal("failover: nobody takes the older token", fleet.agreed(), last)
            cost = fetches(wechat) - before
            check("failover: costs at most one fetch", cost <= 1, 1, cost)
            before = fetches(wechat)
            kill_token(wechat, 0)
            fleet.agreed(but=last)
            load.until_all_called()
            equal("failover: after it, a death costs one fetch", fetches(wechat) - before, 1)
        verdict("failover", wechat, load)
        relay.close()


class Relay:
    """A TCP relay in front of Redis, which can see commands, and stop the world at one of them."""

    def __init__(self, port):
        self.target, self.on_command = port, None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.open = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                if self.listener.fileno() < 0:
                    return
                continue
            self.open += [client, server]
            threading.Thread(target=self.pump, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self.pump, args=(server, client, False), daemon=True).start()

    def pump(self, source, sink, from_client):
        try:
            while data := source.recv(65536):
                watch = self.on_command
                if watch and not watch(data, from_client):
                    continue
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def to(self, port):
        self.target = port
        for end in self.open:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.listener.close()
        self.to(self.target)


class Stop:
    """Kills a process at the n-th piece of traffic of one direction, before it is passed on."""

    def __init__(self, n, from_client):
        self.n, self.from_client, self.victim, self.armed, self.done = n, from_client, None, False, False

    def __call__(self, data, from_client):
        if self.done and from_client:
            return False
        if self.armed and from_client == self.from_client:
            self.n -= 1
            if self.n == 0:
                self.done = True
                self.victim.popen.kill()
                return False
        return True


def crash():
    """kill -9 at every step: before each thing it says to Redis, before each thing it hears, and during the fetch."""
    walked = 0
    for from_client in (True, False):
        for step in range(1, 13):
            with Simulator() as wechat, Redis() as redis:
                relay, stop = Relay(redis.port), Stop(step, from_client)
                flags = direct(wechat, "--token-endpoint", "token", "--store")
                victim = Sidecar("sidecar-victim", [*flags, "redis://127.0.0.1:%d" % relay.port])
                until("the victim is ready", lambda: victim.readiness()["ready"])
                with Fleet([*flags, redis.url], 3) as others:
                    for sidecar in (victim, *others.sidecars):
                        sidecar.call()
                    last = others.agreed()
                    until("it is quiet", lambda: quiet(redis))
                    relay.on_command, stop.victim = stop, victim
                    kill_token(wechat, step)
                    before = fetches(wechat)
                    stop.armed = True
                    dying = threading.Thread(target=ignore, args=(victim.call,))
                    dying.start()
                    deadline = time.monotonic() + 8
                    while victim.popen.poll() is None and dying.is_alive() and time.monotonic() < deadline:
                        time.sleep(0.01)
                    died = victim.popen.poll() is not None
                    where = "%s step %d" % ("before saying" if from_client else "before hearing", step)
                    answers = [sidecar.call() for sidecar in others.sidecars]
                    bad = [text for status, _, text in answers if status != 200 or b'"errcode":0' not in text.replace(b" ", b"")]
                    others.agreed(but=last)
                    cost = fetches(wechat) - before
                    equal("killed %s: no call of the others fails" % where, bad, [])
                    check("killed %s: one fetch, or one more" % where, 1 <= cost <= (2 if died else 1), "1 or 2", cost)
                    walked += died
                    wechat.keep_tokens()
                victim.kill()
                relay.close()
            if not died:
                break
    check("the walk met the steps of a round", walked >= 8, "8 or more", walked)
    with Simulator() as wechat, Redis() as redis:
        flags = classic(wechat, redis)
        victim = Sidecar("sidecar-victim", flags)
        until("the victim is ready", lambda: victim.readiness()["ready"])
        with Fleet(flags, 3) as others:
            last = others.agreed()
            for sidecar in (victim, *others.sidecars):
                sidecar.call()
            kill_token(wechat, 1)
            before = fetches(wechat)
            wechat.ask("/hold_fetches", {})
            threading.Thread(target=ignore, args=(victim.call,)).start()
            until("its fetch is under way", lambda: fetches(wechat) > before)
            victim.kill()
            wechat.ask("/release_fetches", {})
            answers = [sidecar.call() for sidecar in others.sidecars]
            equal("killed while it fetches: no call of the others fails", {status for status, _, _ in answers}, {200})
            check("killed while it fetches: all have one token", others.agreed(but=last), "one", None)
            check("killed while it fetches: one fetch more", fetches(wechat) - before <= 2, 2, fetches(wechat) - before)


def quiet(redis):
    """No lease is held."""
    return not [key for key in redis.ask("KEYS", "*") if "lease" in key]


def ignore(call):
    try:
        call()
    except Exception:  # noqa: BLE001 - the sidecar is being killed
        pass


if __name__ == "__main__":
    for suite in (
        lambda: through("Redis killed and started empty", killed),
        lambda: through("the token dies while Redis is down", dies_while_down, 1 + SIZE),
        lambda: through("Redis paused for 10 s", paused),
        lambda: through("Redis full", full, 1 + SIZE),
        lambda: through("garbage in every key", garbage),
        failover,
        crash,
    ):
        suite()
