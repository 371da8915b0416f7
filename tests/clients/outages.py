"""What clients see when something dies: the sidecar itself (killed under load, brought back by a supervisor), a slow
upstream, a dead one, one that comes back, and a stop with calls in flight."""

import collections
import http.client
import json
import signal
import threading
import time
import uuid
from urllib.parse import urlsplit

from rig import OwnWeChat, Sidecar, Simulator, check, equal, received

SEND = "/cgi-bin/message/custom/send"
BODY = b'{"touser":"oAbc"}'


def call(base, method="POST", path=SEND, body=BODY, timeout=20):
    """Status, headers, parsed body."""
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=timeout)
    try:
        connection.request(method, path, body, {"x-call-id": uuid.uuid4().hex})
        reply = connection.getresponse()
        text = reply.read()
        received("outages", reply.headers, text)
        try:
            return reply.status, reply.headers, json.loads(text, strict=False)
        except ValueError:
            return reply.status, reply.headers, {"errcode": text[:200]}
    finally:
        connection.close()


def is_ours(name, got, status, cause):
    """An error of the sidecar's as design and README promise it: status, header, errcode -1, a sentence."""
    code, head, body = got
    equal(name, (code, head.get("x-wechat-sidecar-error"), body.get("errcode"), head.get("content-type")),
          (status, cause, -1, "application/json"))
    check(name + ": the errmsg says who speaks", str(body.get("errmsg", "")).startswith("wechat-sidecar: "),
          "wechat-sidecar: ...", body)


def killed_under_load(upstream):
    """kill -9, three times; a supervisor starts the next one on the same port at once."""
    sidecar = Sidecar(upstream)
    address = sidecar.address
    token = upstream.tokens()
    fetches = upstream.fetches()
    stop, told = threading.Event(), collections.Counter()

    def load():
        while not stop.is_set():
            try:
                status, _, body = call("http://" + address, timeout=10)
                told["%s %s" % (status, body.get("errcode"))] += 1
            except (OSError, http.client.HTTPException):
                told["no connection"] += 1
                time.sleep(0.01)

    threads = [threading.Thread(target=load) for _ in range(20)]
    for thread in threads:
        thread.start()
    back = []
    for _ in range(3):
        time.sleep(0.4)
        sidecar.stop(signal.SIGKILL)
        began = time.monotonic()
        sidecar = Sidecar(upstream, listen=address)
        back.append(time.monotonic() - began)
    time.sleep(0.4)
    stop.set()
    for thread in threads:
        thread.join()
    good = told.pop("200 0", 0)
    told.pop("no connection", 0)
    # 503 no-token is right for a call that comes before the first fetch and cannot wait; here the fetch is quick.
    equal("killed: a call is answered well or not at all (%d were)" % good, dict(told), {})
    check("killed: there was load", good > 50, "more than 50 good calls", good)
    check("killed: the next start serves within 5 s", max(back) < 5, "< 5 s", back)
    equal("killed: calls after the restart succeed", call(sidecar.base)[2].get("errcode"), 0)
    equal("killed: one fetch a start", upstream.fetches() - fetches, 3)
    equal("killed: the token was not rotated", upstream.tokens(), token)
    equal("killed: a stop is still clean", sidecar.stop(), 0)


def slow(upstream):
    with Sidecar(upstream, "--response-timeout", "500ms") as sidecar:
        call(sidecar.base)
        upstream.ask("/reset_counts", {})
        upstream.ask("/delay", {"ms": 1500})
        began = time.monotonic()
        got = call(sidecar.base)
        took = time.monotonic() - began
        is_ours("slow upstream: 504", got, 504, "response-timeout")
        check("slow upstream: told after response_timeout", 0.4 < took < 1.2, "0.5 s", took)
        time.sleep(1.3)
        upstream.ask("/delay", {"ms": 0})
        equal("slow upstream: the late call was sent once", upstream.ask("/counts")["max_sends_of_a_call"], 1)
        equal("slow upstream: quick again, works again", call(sidecar.base)[2].get("errcode"), 0)


def dead_and_back():
    upstream = OwnWeChat()
    port = urlsplit(upstream.tls).port
    with Sidecar(upstream) as sidecar:
        equal("dead upstream: works before", call(sidecar.base)[2].get("errcode"), 0)
        upstream.stop(signal.SIGKILL)
        began = time.monotonic()
        first, second = call(sidecar.base), call(sidecar.base)
        # The first may meet the connection that has just died under it.
        check("dead upstream: the first call gets 502", first[0] == 502 and first[2].get("errcode") == -1, 502, first)
        is_ours("dead upstream: 502", second, 502, "connect")
        check("dead upstream: told at once", time.monotonic() - began < 1, "< 1 s", time.monotonic() - began)
        # The same address, another process: it knows none of the old tokens, as after a reset of the AppSecret.
        upstream = OwnWeChat(tls_port=port)
        until, got = time.monotonic() + 10, None
        while time.monotonic() < until:
            got = call(sidecar.base)
            if got[2].get("errcode") == 0:
                break
            time.sleep(0.1)
        equal("upstream is back: calls work without a restart of the sidecar", got[2].get("errcode"), 0)
        equal("upstream is back: the first call that worked was its first", upstream.ask("/counts")["accepted"], 1)
        upstream.stop()


def dead_from_the_start():
    """No upstream, hence no token: 503 that says so, and readiness says it, too."""
    upstream = OwnWeChat()
    port = urlsplit(upstream.tls).port
    upstream.stop(signal.SIGKILL)
    with Sidecar(upstream, ready=False) as sidecar:
        time.sleep(0.3)
        began = time.monotonic()
        got = call(sidecar.base)
        is_ours("no upstream from the start: 503", got, 503, "no-token")
        check("no upstream from the start: with Retry-After", int(got[1].get("retry-after", 0)) >= 1, ">= 1", got[1])
        check("no upstream from the start: told within token_wait", time.monotonic() - began < 2.5, "2 s",
              time.monotonic() - began)
        ready = call("http://" + sidecar.admin, "GET", "/readyz", None)
        equal("no upstream from the start: not ready, but alive",
              (ready[0], call("http://" + sidecar.admin, "GET", "/livez", None)[0]), (503, 200))
        upstream = OwnWeChat(tls_port=port)
        until = time.monotonic() + 12
        while time.monotonic() < until and call(sidecar.base)[0] != 200:
            time.sleep(0.1)
        equal("no upstream from the start: works once there is one", call(sidecar.base)[2].get("errcode"), 0)
        upstream.stop()


def stopped_with_calls_in_flight(upstream):
    """SIGTERM: what is in flight finishes, exit code 0."""
    sidecar = Sidecar(upstream)
    upstream.ask("/delay", {"ms": 800})
    told = []
    threads = [threading.Thread(target=lambda: told.append(call(sidecar.base)[2].get("errcode"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    code = sidecar.stop()
    for thread in threads:
        thread.join()
    upstream.ask("/delay", {"ms": 0})
    equal("SIGTERM with 20 calls in flight: all finish, exit 0", (code, told), (0, [0] * 20))


def wrong_ca(upstream):
    """A certificate of a CA that was not named is not trusted, and the operator is told so."""
    with OwnWeChat() as other, Sidecar(upstream, url=other.tls, ca=upstream.ca, ready=False) as sidecar:
        got = call(sidecar.base)
        is_ours("an untrusted upstream: no token, no call", got, 503, "no-token")
        equal("an untrusted upstream: saw not a single request", other.ask("/seen"), [])


def two_rotations_within_one_call():
    """The token dies, and its successor dies before any call was accepted with it: the call under way gets WeChat's
    second refusal, the next one should not, as there is a good token to be had by one fetch."""
    with OwnWeChat() as upstream, Sidecar(upstream) as sidecar:
        call(sidecar.base)
        upstream.ask("/delay", {"ms": 300})
        upstream.ask("/expire", {})
        under_way = threading.Thread(target=call, args=(sidecar.base,))
        under_way.start()
        # 0.3 s: refused; 0.6 s: another token is fetched; 0.9 s: the second sending is judged.
        time.sleep(0.75)
        upstream.ask("/rotate", {"at_once": True})
        under_way.join()
        upstream.ask("/delay", {"ms": 0})
        told, until = [], time.monotonic() + 2.5
        while time.monotonic() < until:
            told.append(int(call(sidecar.base)[2]["errcode"]))
            time.sleep(0.1)
        check("two rotations within one call: the next calls do not notice", set(told) == {0}, "only 0", told)
        equal("two rotations within one call: after 2.5 s it is over", told[-1], 0)


def rid_get(upstream):
    """WeChat's rid/get tells the query of a failed call, with the token it carried (fact sheet 4h)."""
    with Sidecar(upstream) as sidecar:
        failed = call(sidecar.base, "GET", "/cgi-bin/user/info?openid=", None)[2]["errmsg"]
        body = json.dumps({"rid": failed.split("rid: ")[1]}).encode()
        connection = http.client.HTTPConnection(urlsplit(sidecar.base).netloc, timeout=10)
        connection.request("POST", "/cgi-bin/openapi/rid/get", body)
        # Not by call(): what comes back is no proof against the other routes.
        reply = connection.getresponse().read().decode()
        leaked = [token for token in upstream.tokens() if token in reply]
        check("rid/get does not show the app its token", not leaked, "no token", "a live token in request_url")


with Simulator() as simulator:
    rid_get(simulator)
    killed_under_load(simulator)
    slow(simulator)
    stopped_with_calls_in_flight(simulator)
    wrong_ca(simulator)
two_rotations_within_one_call()
dead_and_back()
dead_from_the_start()
