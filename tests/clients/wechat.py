"""WeChat's token rules once more, in Python, read from the facts without a look at the Rust simulator: where the two
disagree, one of them has misread something (agreement.py asks both).

    wechat.py --cert server.pem --key server.key [--tls-port N] [--appid A] --secret-file PATH

Says where it listens on standard output: TLS and plain for the API, and a control port with /expire, /rotate, /delay,
/advance, /accept_token, /counts, /seen, /tokens, /reset. The names and the JSON of the control port are those of
`wechat-sidecar simulate`, so that the same checks drive both.
"""

import argparse
import collections
import hashlib
import json
import secrets
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

LIFE = 7200
OVERLAP = 300  # a replaced token goes on working for five minutes
FORCED_GAP = 30
FORCED_PER_DAY = 20
CLASSIC_PER_DAY = 2000

ERRMSG = {
    40001: "invalid credential, access_token is invalid or not latest",
    40002: "invalid grant_type",
    40003: "invalid openid",
    40007: "invalid media_id",
    40013: "invalid appid",
    40014: "invalid access_token",
    40029: "invalid code",
    40125: "invalid appsecret",
    41001: "access_token missing",
    41002: "appid missing",
    41004: "appsecret missing",
    41005: "media data missing",
    41008: "missing code",
    42001: "access_token expired",
    43002: "require POST method",
    44002: "empty post data",
    45009: "reach max api daily quota limit",
    47001: "data format error",
}


class Refused(Exception):
    def __init__(self, errcode):
        super().__init__(errcode)
        self.errcode = errcode


class Line:
    """The tokens of one endpoint: classic and stable ones do not touch each other."""

    def __init__(self):
        self.current = None  # (token, expires_at)
        self.forced = []


class WeChat:
    """The rules and the book of what was seen. Every method is called under `lock`."""

    def __init__(self, appid, secret):
        self.lock = threading.RLock()
        self.accounts = {appid: secret}
        self.skew = 0
        self.delay = 0
        self.media = {}
        self.tokens = {}  # token -> [works until, errcode after that]
        self.lines = {"classic": Line(), "stable": Line()}
        self.extra = set()
        self.classic_today = 0
        self.shape = 0
        self.reset()

    def reset(self):
        self.seen = collections.deque(maxlen=4096)
        self.counts = collections.Counter()
        self.sends = collections.Counter()
        self.accepts = collections.Counter()
        self.token_of = {}

    def now(self):
        return time.monotonic() + self.skew

    # Tokens

    def issue(self, kind, overlap):
        line = self.lines[kind]
        if line.current:
            old = self.tokens[line.current[0]]
            # The one before the last has had its handover.
            for value, ends in self.tokens.items():
                if ends[2] == kind and value != line.current[0] and ends[0] > self.now():
                    ends[0], ends[1] = self.now(), 40001
            if old[0] > self.now():
                old[0], old[1] = self.now() + overlap, 40001
        token = "%d_%s" % (60 + len(self.tokens) % 30, secrets.token_urlsafe(384))
        self.tokens[token] = [self.now() + LIFE, 42001, kind]
        line.current = (token, self.now() + LIFE)
        return token, LIFE

    def authenticate(self, appid, secret):
        if not appid:
            raise Refused(41002)
        if not secret:
            raise Refused(41004)
        if appid not in self.accounts:
            raise Refused(40013)
        if self.accounts[appid] != secret:
            raise Refused(40125)

    def classic(self):
        self.classic_today += 1
        if self.classic_today > CLASSIC_PER_DAY:
            raise Refused(45009)
        return self.issue("classic", OVERLAP)

    def stable(self, force):
        line = self.lines["stable"]
        if force:
            recent = [at for at in line.forced if at > self.now() - 86400]
            if not recent or self.now() - recent[-1] >= FORCED_GAP:
                if len(recent) >= FORCED_PER_DAY:
                    raise Refused(45009)
                line.forced = recent + [self.now()]
                return self.issue("stable", 0)
        if line.current:
            token, expires_at = line.current
            left = expires_at - self.now()
            if left >= OVERLAP and self.tokens[token][0] > self.now():
                return token, int(left)
        return self.issue("stable", OVERLAP)

    def judge(self, query):
        """The app token of a call."""
        given = query.get("access_token", [])
        if len(given) > 1:
            # Which of the two wins is not documented: whoever appends instead of replacing is found out.
            self.counts["duplicate_tokens"] += 1
            raise Refused(40001)
        if not given or not given[0]:
            raise Refused(41001)
        if given[0] in self.extra:
            return
        ends = self.tokens.get(given[0])
        if ends is None:
            self.counts["unknown_tokens"] += 1
            raise Refused(40014)
        if self.now() >= ends[0]:
            raise Refused(ends[1])

    def expire(self):
        for ends in self.tokens.values():
            if ends[0] > self.now():
                ends[0], ends[1] = self.now(), 42001

    def refusal(self, errcode):
        """A refusal as WeChat may write it: the code first or last, a number or a string, not always strict JSON."""
        text = "%s rid: %s-%s" % (ERRMSG.get(errcode, "error"), secrets.token_hex(4), secrets.token_hex(4))
        if errcode not in (40001, 40014, 42001):
            return '{"errcode":%d,"errmsg":"%s"}' % (errcode, text)
        shapes = [
            '{"errcode":%d,"errmsg":"%s"}',
            '{"errcode":"%d","errmsg":"%s"}',
            '{"errmsg":"%s","errcode":%d}',
            '\n {\n\t"errcode" : %d ,\n\t"errmsg" : "%s"\n}\n',
            '{"ip_list":[],"errmsg":"%s\x01","errcode":%d}',
        ]
        shape = shapes[self.shape % len(shapes)]
        self.shape += 1
        first = shape.index("%d") < shape.index("%s")
        return shape % ((errcode, text) if first else (text, errcode))


class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60
    wechat: WeChat

    def log_message(self, *_):
        pass

    def answer(self, status, body, kind, head=()):
        self.send_response_only(status)
        for name, value in [("Content-Type", kind), ("Content-Length", str(len(body))), *head]:
            self.send_header(name, value)
        # One write: a reply in two packets would hide a proxy that waits for a second one.
        self._headers_buffer.append(b"\r\n" + (b"" if self.command == "HEAD" else body))
        self.flush_headers()

    def body(self):
        """Length, SHA-256 and, up to 64 MiB, the bytes."""
        left = int(self.headers.get("Content-Length") or 0)
        length, digest, kept = left, hashlib.sha256(), []
        while left:
            piece = self.rfile.read(min(left, 1 << 20))
            if not piece:
                raise ConnectionError("the body broke off")
            left -= len(piece)
            digest.update(piece)
            if length <= 64 << 20:
                kept.append(piece)
        return length, digest.hexdigest(), b"".join(kept)

    def handle_any(self):
        wechat = self.wechat
        target = self.raw_requestline.split(b" ")[1].decode("latin-1")
        url = urlsplit("//h" + target) if target.startswith("/") else urlsplit(target)
        query = parse_qs(url.query, keep_blank_values=True)
        seen = {"method": self.command, "target": target, "headers": [[k.lower(), v] for k, v in self.headers.items()]}
        if self.headers.get("Transfer-Encoding"):
            wechat.counts["chunked_refused"] += 1
            self.close_connection = True
            # Read to its end all the same: to close on unread bytes would reset the answer away.
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                self.rfile.read(size + 2)
            return self.answer(412, b"", "text/plain")
        length, digest, body = self.body()
        seen.update(body_length=length, body_sha256=digest)
        call_id = self.headers.get("x-call-id")
        if wechat.delay:
            time.sleep(wechat.delay)
        head, kind = [], "application/json; encoding=utf-8"
        with wechat.lock:
            wechat.seen.append(seen)
            try:
                if call_id:
                    wechat.sends[call_id] += 1
                    token = query.get("access_token", [""])[0]
                    wechat.counts["same_token_again"] += wechat.token_of.get(call_id) == token
                    wechat.token_of[call_id] = token
                reply = self.route(url.path, query, body)
                wechat.counts["accepted"] += url.path not in ("/cgi-bin/token", "/cgi-bin/stable_token")
                if call_id:
                    wechat.accepts[call_id] += 1
            except Refused as refused:
                seen["errcode"] = refused.errcode
                reply = wechat.refusal(refused.errcode).encode()
                if url.path.startswith(("/sns/", "/cgi-bin/media/", "/wxa/getwxacode")):
                    kind = "text/plain"
            if isinstance(reply, tuple):
                reply, kind = reply
            elif isinstance(reply, dict):
                reply = json.dumps(reply, ensure_ascii=False).encode()
                if url.path.startswith("/sns/"):
                    kind = "text/plain"
        self.answer(200, reply, kind, head)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_OPTIONS = handle_any

    def route(self, path, query, body):
        wechat = self.wechat
        one = lambda name: query.get(name, [""])[0]
        if path == "/cgi-bin/token":
            wechat.counts["classic"] += 1
            if one("grant_type") != "client_credential":
                raise Refused(40002)
            wechat.authenticate(one("appid"), one("secret"))
            token, life = wechat.classic()
            return {"access_token": token, "expires_in": life}
        if path == "/cgi-bin/stable_token":
            return self.stable_token(body)
        if path == "/sns/jscode2session":
            wechat.authenticate(one("appid"), one("secret"))
            if not one("js_code"):
                raise Refused(41008)
            return {"session_key": "tiihtNczf5v6AKRyjwEUhQ==", "openid": "oOwn"}
        if path.startswith("/sns/"):
            if not one("access_token"):
                raise Refused(41001)
            if one("access_token") != "user-token":
                raise Refused(40001)
            return {"openid": "oOwn", "nickname": "小明"}
        wechat.judge(query)
        if path == "/cgi-bin/user/info":
            if not one("openid"):
                raise Refused(40003)
            return {"subscribe": 1, "openid": one("openid"), "nickname": "小明"}
        if path == "/cgi-bin/media/upload":
            return self.upload(body)
        if path == "/cgi-bin/media/get":
            name = one("media_id")
            if name.startswith("big-"):
                return pattern(int(name[4:])), "image/jpeg"
            if name not in wechat.media:
                raise Refused(40007)
            return wechat.media[name], "image/jpeg"
        if path == "/cgi-bin/message/custom/send":
            self.posted(body)
        return {"errcode": 0, "errmsg": "ok"}

    def posted(self, body):
        if self.command != "POST":
            raise Refused(43002)
        if not body:
            raise Refused(44002)
        try:
            return json.loads(body)
        except ValueError:
            raise Refused(47001) from None

    def stable_token(self, body):
        wechat = self.wechat
        wechat.counts["stable"] += 1
        asked = self.posted(body)
        if asked.get("grant_type") != "client_credential":
            raise Refused(40002)
        wechat.authenticate(asked.get("appid"), asked.get("secret"))
        wechat.counts["forced"] += asked.get("force_refresh") is True
        token, life = wechat.stable(asked.get("force_refresh") is True)
        return {"access_token": token, "expires_in": life}

    def upload(self, body):
        if self.command != "POST":
            raise Refused(43002)
        kind = self.headers.get("Content-Type", "")
        if kind.startswith("multipart/"):
            boundary = b"--" + kind.split("boundary=", 1)[1].strip('"').encode()
            parts = [part.partition(b"\r\n\r\n") for part in body.split(boundary)[1:-1]]
            files = [content[:-2] for head, _, content in parts if b"filename" in head]
            if not files:
                raise Refused(41005)
            body = files[0]
        if not body:
            raise Refused(41005)
        name = "own-" + hashlib.sha256(body).hexdigest()
        if len(body) <= 16 << 20:
            self.wechat.media[name] = body
        return {"type": "image", "media_id": name, "created_at": int(time.time())}


def pattern(length):
    """Bytes that are nowhere the same for long, so that a lost or doubled piece changes the sum."""
    block = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(2048))
    return (block * (length // len(block) + 1))[:length]


class Control(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wechat: WeChat

    def log_message(self, *_):
        pass

    def do_POST(self):
        given = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        wechat = self.wechat
        with wechat.lock:
            if self.path == "/expire":
                wechat.expire()
            elif self.path == "/rotate":
                wechat.issue(given.get("kind", "stable"), 0 if given.get("at_once", True) else OVERLAP)
            elif self.path == "/delay":
                wechat.delay = given["ms"] / 1000
            elif self.path == "/advance":
                wechat.skew += given["seconds"]
            elif self.path == "/accept_token":
                wechat.extra.add(given["token"])
            elif self.path == "/reset_counts":
                wechat.reset()
        self.reply({"ok": True})

    def do_GET(self):
        wechat = self.wechat
        with wechat.lock:
            top = lambda counter: max(counter.values(), default=0)
            told = ("accepted", "duplicate_tokens", "unknown_tokens", "chunked_refused", "same_token_again")
            counts = {name: wechat.counts[name] for name in told}
            counts["fetches"] = {name: wechat.counts[name] for name in ("classic", "stable", "forced")}
            counts["max_sends_of_a_call"], counts["max_accepts_of_a_call"] = top(wechat.sends), top(wechat.accepts)
            answers = {"/counts": counts, "/seen": list(wechat.seen), "/tokens": list(wechat.tokens)}
            self.reply(answers[self.path.split("?")[0]])

    def reply(self, value):
        body = json.dumps(value).encode()
        self.send_response_only(200)
        self.send_header("Content-Length", str(len(body)))
        self._headers_buffer.append(b"\r\n" + body)
        self.flush_headers()


class Server(ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True
    tls = None

    def get_request(self):
        sock, address = super().get_request()
        if self.tls:
            # The handshake is left to the connection's own thread, so that a slow client cannot stop the others.
            sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return sock, address

    def shutdown_request(self, request):
        try:
            request.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        self.close_request(request)

    def handle_error(self, *_):
        pass  # how a client leaves is its own affair


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--cert", required=True)
    options.add_argument("--key", required=True)
    options.add_argument("--tls-port", type=int, default=0)
    options.add_argument("--appid", default="wx0123456789abcdef")
    options.add_argument("--secret-file", required=True)
    options = options.parse_args()
    with open(options.secret_file) as file:
        wechat = WeChat(options.appid, file.read().strip())
    Api.wechat = Control.wechat = wechat
    plain, tls = Server(("127.0.0.1", 0), Api), Server(("127.0.0.1", options.tls_port), Api)
    tls.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.tls.load_cert_chain(options.cert, options.key)
    control = Server(("127.0.0.1", 0), Control)
    for server in (plain, tls, control):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("  API       http://127.0.0.1:%d" % plain.server_port)
    print("  API, TLS  https://127.0.0.1:%d" % tls.server_port)
    print("  control   http://127.0.0.1:%d" % control.server_port, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
