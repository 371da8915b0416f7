"""Asks both WeChats, the Rust simulator and the Python one, the same things in the same order: they were read from the
same facts by different people, so where the answers differ one of them is wrong."""

import json
import urllib.error
import urllib.request

from rig import APPID, SECRET_FILE, OwnWeChat, Simulator, equal

with open(SECRET_FILE) as file:
    SECRET = file.read().strip()


def ask(base, method, target, body=None, head=None):
    """Status, kind of body, errcode as a number, and the names of the fields."""
    data = body.encode() if isinstance(body, str) else body
    request = urllib.request.Request(base + target, data, head or {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            status, text = reply.status, reply.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    try:
        fields = json.loads(text, strict=False)
    except ValueError:
        return status, "empty" if not text else "not JSON", None
    code = fields.get("errcode")
    return status, "errcode" if code is not None else " ".join(sorted(fields)), None if code is None else int(code)


class Side:
    """One WeChat and the tokens it gave, by a name that is the same on both sides."""

    def __init__(self, upstream):
        self.upstream, self.named = upstream, {"user": "user-token", "never": "60_neverissued"}

    def stable(self, name, force=False):
        body = {"grant_type": "client_credential", "appid": APPID, "secret": SECRET, "force_refresh": force}
        return self.take(name, "POST", "/cgi-bin/stable_token", json.dumps(body).encode())

    def classic(self, name):
        query = "?grant_type=client_credential&appid=%s&secret=%s" % (APPID, SECRET)
        return self.take(name, "GET", "/cgi-bin/token" + query)

    def take(self, name, method, target, body=None):
        request = urllib.request.Request(self.upstream.plain + target, body, method=method)
        with urllib.request.urlopen(request, timeout=10) as reply:
            fields = json.load(reply)
        if "access_token" not in fields:
            return fields.get("errcode")
        known = [other for other, token in self.named.items() if token == fields["access_token"]]
        self.named.setdefault(name, fields["access_token"])
        # Whether it is an old acquaintance, and its life to the next ten seconds: they were asked moments apart.
        return (known or ["new"])[0], round(fields["expires_in"], -1)

    def call(self, name, path="/cgi-bin/message/custom/send"):
        return ask(self.upstream.plain, "POST", path + "?access_token=" + self.named[name], '{"touser":"o"}')


def both(name, sides, act):
    """The check: what the simulator says is what the Python WeChat says."""
    simulator, own = [act(side) for side in sides]
    equal("the two WeChats agree: " + name, simulator, own)


def refused_fetches(sides):
    stable = lambda **fields: json.dumps({"grant_type": "client_credential", "appid": APPID, "secret": SECRET, **fields})
    classic = "/cgi-bin/token?grant_type=client_credential&appid="
    cases = [
        ("stable_token by GET", "GET", "/cgi-bin/stable_token", None),
        ("stable_token without a body", "POST", "/cgi-bin/stable_token", ""),
        ("stable_token as a form", "POST", "/cgi-bin/stable_token", "grant_type=client_credential&appid=a"),
        ("stable_token, another grant_type", "POST", "/cgi-bin/stable_token", stable(grant_type="password")),
        ("stable_token without appid", "POST", "/cgi-bin/stable_token", stable(appid="")),
        ("stable_token, unknown appid", "POST", "/cgi-bin/stable_token", stable(appid="wx0000000000000000")),
        ("stable_token without secret", "POST", "/cgi-bin/stable_token", stable(secret="")),
        ("stable_token, wrong secret", "POST", "/cgi-bin/stable_token", stable(secret="0" * 32)),
        ("token without grant_type", "GET", "/cgi-bin/token?appid=" + APPID, None),
        ("token without appid", "GET", classic, None),
        ("token, unknown appid", "GET", classic + "wx0000000000000000&secret=x", None),
        ("token without secret", "GET", classic + APPID, None),
        ("token, wrong secret", "GET", classic + APPID + "&secret=" + "0" * 32, None),
    ]
    for name, method, target, body in cases:
        both(name, sides, lambda side: ask(side.upstream.plain, method, target, body))


def calls(sides):
    for side in sides:
        side.stable("s")
    token = lambda side: "access_token=" + side.named["s"]
    cases = [
        ("a good call", "POST", "/cgi-bin/message/custom/send?{}", '{"touser":"o"}'),
        ("a call without a token", "POST", "/cgi-bin/message/custom/send", '{"touser":"o"}'),
        ("a call with an empty token", "POST", "/cgi-bin/message/custom/send?access_token=", '{"touser":"o"}'),
        ("a call with a token never issued", "POST", "/cgi-bin/message/custom/send?access_token=60_never", "{}"),
        ("a send by GET", "GET", "/cgi-bin/message/custom/send?{}", None),
        ("a send without a body", "POST", "/cgi-bin/message/custom/send?{}", ""),
        ("a send that is no JSON", "POST", "/cgi-bin/message/custom/send?{}", "touser=o"),
        ("user/info without openid", "GET", "/cgi-bin/user/info?{}", None),
        ("media/get of nothing", "GET", "/cgi-bin/media/get?{}&media_id=bad", None),
        ("an upload without a file", "POST", "/cgi-bin/media/upload?{}&type=image", ""),
        ("login without secret", "GET", "/sns/jscode2session?appid=%s&js_code=c" % APPID, None),
        ("login", "GET", "/sns/jscode2session?appid=%s&secret=%s&js_code=c" % (APPID, SECRET), None),
        ("login without a code", "GET", "/sns/jscode2session?appid=%s&secret=%s" % (APPID, SECRET), None),
        ("a user's call without a token", "GET", "/sns/userinfo?openid=o", None),
    ]
    for name, method, target, body in cases:
        both(name, sides, lambda side: ask(side.upstream.plain, method, target.format(token(side)), body))
    for body in ([b'{"touser":', b'"o"}'],):
        target = "/cgi-bin/message/custom/send?{}"
        chunked = lambda side: ask(side.upstream.plain, "POST", target.format(token(side)), iter(body), {"x": "y"})
        both("a chunked request", sides, chunked)


def lives(sides):
    """Who ends when: fact sheet 1 and 2."""
    both("stable: asked again, the same token", sides, lambda side: side.stable("s2"))
    both("classic: the first", sides, lambda side: side.classic("c1"))
    both("classic does not touch stable", sides, lambda side: side.call("s"))
    both("classic: asked again, another token", sides, lambda side: side.classic("c2"))
    both("classic: the old one works on", sides, lambda side: side.call("c1"))
    advance(sides, 301)
    both("classic: the old one is dead after five minutes", sides, lambda side: side.call("c1"))
    both("classic: the new one lives", sides, lambda side: side.call("c2"))
    advance(sides, 7200 - 301 - 310)
    both("stable: the same with 310 s left", sides, lambda side: side.stable("s3"))
    advance(sides, 20)
    both("stable: another with 290 s left", sides, lambda side: side.stable("s4"))
    both("stable: the old one works on", sides, lambda side: side.call("s"))
    both("stable: the new one works at once", sides, lambda side: side.call("s4"))
    advance(sides, 301)
    both("stable: the old one is dead after its handover", sides, lambda side: side.call("s"))
    both("stable: forced, another token", sides, lambda side: side.stable("f1", force=True))
    both("stable: forced again within 30 s, the same token", sides, lambda side: side.stable("f2", force=True))
    both("stable: the token before a forced one", sides, lambda side: side.call("s4"))
    for side in sides:
        side.upstream.ask("/expire", {})
    both("a token that ran out", sides, lambda side: side.call("f1"))
    both("a fetch after that", sides, lambda side: side.stable("n1"))
    for side in sides:
        side.upstream.ask("/rotate", {"at_once": True})
    both("a token that someone else's fetch voided", sides, lambda side: side.call("n1"))
    both("a fetch after that brings a live one", sides, lambda side: (side.stable("n2"), side.call("n2")))


def advance(sides, seconds):
    for side in sides:
        side.upstream.ask("/advance", {"seconds": seconds})


with Simulator() as simulator, OwnWeChat() as own:
    both_sides = [Side(simulator), Side(own)]
    refused_fetches(both_sides)
    calls(both_sides)
    lives(both_sides)
