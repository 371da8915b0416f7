"""An ordinary day of an app that uses wechatpy: python app.py PICTURE"""

import os
import sys

from requests.adapters import HTTPAdapter
from wechatpy import WeChatClient
from wechatpy.oauth import WeChatOAuth

WECHAT = "https://api.weixin.qq.com"
SIDECAR = os.environ.get("WECHAT_BASE_URL")  # http://127.0.0.1:7200
APPID = os.environ.get("WECHAT_APPID", "wx0123456789abcdef")
SECRET = "not-a-secret"  # the sidecar has the real one


class ToSidecar(HTTPAdapter):
    """Sends to the sidecar what is meant for WeChat."""

    def send(self, request, *args, **kwargs):
        request.url = SIDECAR + request.url[len(WECHAT):]
        return super().send(request, *args, **kwargs)


def make_clients():
    client = WeChatClient(APPID, SECRET)
    oauth = WeChatOAuth(APPID, SECRET, "https://app.example/login")
    if SIDECAR:
        client._http.mount(WECHAT, ToSidecar())
        oauth._http.mount(WECHAT, ToSidecar())
    return client, oauth


def day(picture):
    """Yields the name and the result of one call after another."""
    client, oauth = make_clients()

    followers = client.user.get_followers()
    yield "followers", followers
    users = followers["data"]["openid"]
    yield "user", client.user.get(users[0])
    yield "menu", client.menu.create({"button": [{"type": "click", "name": "今日歌曲", "key": "SONG"}]})
    for user in users:
        yield "template", client.message.send_template(user, "TEMPLATE", {"first": {"value": "你好"}})
    yield "message", client.message.send_text(users[0], "你好")
    with open(picture, "rb") as file:
        uploaded = client.media.upload("image", file)
    yield "upload", uploaded
    yield "download", client.media.download(uploaded["media_id"]).content
    yield "qrcode", client.qrcode.create({"action_name": "QR_LIMIT_SCENE", "action_info": {"scene": {"scene_id": 1}}})
    yield "wxacode", client.wxa.get_wxa_code_unlimited("a=1").content
    yield "login", client.wxa.code_to_session("code-of-a-mini-program")
    yield "web login", oauth.fetch_access_token("code-of-a-page")
    yield "web user", oauth.get_user_info()
    yield "web refresh", oauth.refresh_access_token(oauth.refresh_token)
    yield "device", client.device.create_qrcode(["lamp"])
    yield "device status", client.device.get_stat("lamp")
    yield "followers", client.user.get_followers()


if __name__ == "__main__":
    for name, result in day(sys.argv[1]):
        print(name, f"{len(result)} bytes" if isinstance(result, bytes) else result)
