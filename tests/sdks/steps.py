"""Walks through the day of a Python recipe, one call at a time: steps.py FOLDER PICTURE

After each call a line of JSON goes out, and a line is waited for before the next. At the end it stays until its input
ends, so that its memory can be looked into.
"""

import hashlib
import ipaddress
import json
import os
import socket
import sys

folder, picture = sys.argv[1:3]
sys.path.insert(0, folder + "/packages")
sys.path.insert(0, folder)


# Where this process finds WeChat's own name: at an address of the test's (`ip:port`), by the hosts file, or nowhere.
WECHAT, HOST_AT, BY_HOSTS = "api.weixin.qq.com", os.environ.pop("TEST_HOST_AT", ""), os.environ.pop("TEST_BY_HOSTS", "")


def only_loopback(connect):
    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not ipaddress.ip_address(address[0]).is_loopback:
            raise ConnectionRefusedError(f"a call went to {address}, around the sidecar")
        return connect(self, address)

    return guarded


def resolve(host, port, *args, **kwargs):
    if host == WECHAT and HOST_AT and port == 443:
        host, port = HOST_AT.split(":")
    if host == WECHAT and BY_HOSTS:
        return real_resolve(host, port, *args, **kwargs)
    if host not in ("localhost", "127.0.0.1", "::1"):
        raise socket.gaierror(f"a call went to {host}, around the sidecar")
    return real_resolve(host, port, *args, **kwargs)


real_resolve, socket.getaddrinfo = socket.getaddrinfo, resolve
socket.socket.connect = only_loopback(socket.socket.connect)


def tell(**fields):
    print(json.dumps(fields), flush=True)
    return sys.stdin.readline()


def shown(result):
    if isinstance(result, bytes):
        return {"length": len(result), "sha256": hashlib.sha256(result).hexdigest()}
    return result


def main():
    import app

    try:
        for name, result in app.day(picture):
            if not tell(step=name, result=shown(result)):
                return
    except Exception as error:
        tell(error=f"{type(error).__name__}: {error}"[:500])
        return
    tell(done=True)
    sys.stdin.read()


main()
