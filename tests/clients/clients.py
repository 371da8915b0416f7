"""Python's clients against a sidecar: http.client, urllib, requests and httpx, each with its own idea of a request.
BASE and CONTROL come from `rig.py with`."""

import hashlib
import http.client
import io
import json
import os
import urllib.error
import urllib.request
import uuid
from urllib.parse import urlsplit

from rig import check, equal, received

BASE, CONTROL, KIND = os.environ["BASE"], os.environ["CONTROL"], os.environ["UPSTREAM"]
SEND = "/cgi-bin/message/custom/send"
INFO = "/cgi-bin/user/info?openid=oAbc&lang=zh_CN&q=%E4%BD%A0+a%20b%2F&access_token=anything"
JSON = json.dumps({"touser": "oAbc", "text": {"content": "你好 \u2028 \\u4f60"}}, ensure_ascii=False).encode()


def ask(path, body=None):
    request = urllib.request.Request(CONTROL + path, None if body is None else json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as reply:
        return json.load(reply)


def generator(data, piece=7000):
    """A body whose length the client cannot know: it goes out chunked."""
    for at in range(0, len(data), piece):
        yield data[at : at + piece]


def multipart(data):
    boundary = uuid.uuid4().hex
    head = '--%s\r\nContent-Disposition: form-data; name="media"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    return (head % boundary).encode() + data + ("\r\n--%s--\r\n" % boundary).encode(), boundary


class HttpClient:
    """http.client on one connection, or on a new one for every call."""

    def __init__(self, keep_alive):
        self.name = "http.client, " + ("keep-alive" if keep_alive else "Connection: close")
        self.keep_alive, self.connection, self.sockets = keep_alive, None, set()

    def call(self, method, path, body=None, head=None):
        if self.connection is None:
            self.connection = http.client.HTTPConnection(urlsplit(BASE).netloc, timeout=20)
        head = dict(head or {}, **({} if self.keep_alive else {"Connection": "close"}))
        self.connection.request(method, path, body, head)
        self.sockets.add(id(self.connection.sock))
        reply = self.connection.getresponse()
        data = reply.read()
        if not self.keep_alive:
            check(self.name + ": the reply says close, too", reply.will_close, True, False)
            self.connection = None
        return reply.status, reply.headers, data

    def upload(self, path, data):
        body, boundary = multipart(data)
        return self.call("POST", path, body, {"Content-Type": "multipart/form-data; boundary=" + boundary})


class Urllib:
    name = "urllib"

    def call(self, method, path, body=None, head=None):
        request = urllib.request.Request(BASE + path, body, head or {}, method=method)
        try:
            reply = urllib.request.urlopen(request, timeout=20)
        except urllib.error.HTTPError as error:
            reply = error
        with reply:
            return reply.status, reply.headers, reply.read()

    def upload(self, path, data):
        body, boundary = multipart(data)
        return self.call("POST", path, body, {"Content-Type": "multipart/form-data; boundary=" + boundary})


class Requests:
    def __init__(self, session):
        import requests

        self.name = "requests, " + ("a session" if session else "a connection a call")
        self.http = requests.Session() if session else requests

    def call(self, method, path, body=None, head=None):
        reply = self.http.request(method, BASE + path, data=body, headers=head, timeout=20)
        return reply.status_code, reply.headers, reply.content

    def upload(self, path, data):
        reply = self.http.post(BASE + path, files={"media": ("a.jpg", io.BytesIO(data), "image/jpeg")}, timeout=20)
        return reply.status_code, reply.headers, reply.content


class Httpx:
    def __init__(self, session):
        import httpx

        self.name = "httpx, " + ("a client" if session else "a connection a call")
        self.http = httpx.Client() if session else httpx

    def call(self, method, path, body=None, head=None):
        reply = self.http.request(method, BASE + path, content=body, headers=head, timeout=20) if body is not None \
            else self.http.request(method, BASE + path, headers=head, timeout=20)
        return reply.status_code, reply.headers, reply.content

    def upload(self, path, data):
        reply = self.http.post(BASE + path, files={"media": ("a.jpg", io.BytesIO(data), "image/jpeg")}, timeout=20)
        return reply.status_code, reply.headers, reply.content


def clients():
    yield HttpClient(True)
    yield HttpClient(False)
    yield Urllib()
    for client in (Requests, Httpx):
        for session in (True, False):
            try:
                yield client(session)
            except ImportError:
                print("skip %s: it is not installed" % client.__name__.lower())
                break


def tour(client, when):
    """Every kind of call once. `when` says what state the token is in."""

    def call(what, *args, **kwargs):
        method = getattr(client, kwargs.pop("by", "call"))
        try:
            status, head, body = method(*args, **kwargs)
        except Exception as error:  # whatever a client raises is what its user would see
            check("%s: %s %s (%s)" % (client.name, what, when, KIND), False, "an answer", repr(error))
            return None, {}, b""
        received("python", head, body)
        return status, head, body

    def ok(what, got, expected):
        equal("%s: %s %s (%s)" % (client.name, what, when, KIND), got, expected)

    def errcode(body):
        try:
            return json.loads(body)["errcode"]
        except (ValueError, KeyError, TypeError):
            return body[:200]

    status, _, body = call("GET", "GET", INFO)
    ok("GET", (status, b"oAbc" in body), (200, True))
    status, _, body = call("POST", "POST", SEND, JSON, {"Content-Type": "application/json"})
    ok("POST", (status, errcode(body)), (200, 0))
    status, _, body = call("POST as bytes", "POST", SEND, JSON)
    ok("POST as bytes, as SDKs send it", (status, errcode(body)), (200, 0))
    status, _, body = call("chunked", "POST", SEND, generator(JSON, 5))
    ok("POST from a generator (chunked)", (status, errcode(body)), (200, 0))
    photo = os.urandom(40_000)
    status, _, body = call("upload", "/cgi-bin/media/upload?type=image", photo, by="upload")
    media = json.loads(body).get("media_id") if status == 200 else "none"
    status, _, body = call("download", "GET", "/cgi-bin/media/get?media_id=" + str(media))
    ok("a multipart upload comes back", (status, hashlib.sha256(body).digest()), (200, hashlib.sha256(photo).digest()))
    big = os.urandom(6_000_000)
    status, _, body = call("6 MB", "POST", "/cgi-bin/media/upload", generator(big, 100_000), {"X-Call-Id": uuid.uuid4().hex})
    last = ask("/seen?limit=1")[-1]
    ok("6 MB from a generator", (status, last["body_sha256"]), (200, hashlib.sha256(big).hexdigest()))
    status, _, body = call("HEAD", "HEAD", INFO)
    ok("HEAD", (status, body), (200, b""))
    status, _, body = call("login", "GET", "/sns/jscode2session?js_code=%s&grant_type=authorization_code" % uuid.uuid4().hex)
    ok("login, for which the sidecar adds the secret", (status, b"session_key" in body), (200, True))
    status, _, body = call("WeChat's own errors", "GET", "/cgi-bin/user/info?openid=")
    ok("an error that is no token error comes as it is", (status, errcode(body)), (200, 40003))


# Each kind of call is made with a good token and again with a token that died just before it.
class Dying:
    """A client before whose every call the token dies."""

    def __init__(self, client):
        self.client, self.name, self.turn = client, client.name, 0

    def kill(self):
        self.turn += 1
        ask("/expire", {}) if self.turn % 2 else ask("/rotate", {"at_once": True})

    def call(self, *args, **kwargs):
        self.kill()
        return self.client.call(*args, **kwargs)

    def upload(self, *args, **kwargs):
        self.kill()
        return self.client.upload(*args, **kwargs)


if __name__ == "__main__":
    for each in clients():
        tour(each, "with a good token")
        tour(Dying(each), "with a token that just died")
        if getattr(each, "keep_alive", False):
            equal("%s: one connection served all of it (%s)" % (each.name, KIND), len(each.sockets), 1)
    counts = ask("/counts")
    equal("python: the upstream saw no placeholder, second token or chunked request (%s)" % KIND,
          [counts["unknown_tokens"], counts["duplicate_tokens"], counts["chunked_refused"]], [0, 0, 0])
