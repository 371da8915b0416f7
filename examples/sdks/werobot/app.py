"""An ordinary day of an app that uses werobot: python app.py PICTURE"""

import os
import sys

import requests
import werobot.client

WECHAT = "https://api.weixin.qq.com"
SIDECAR = os.environ.get("WECHAT_BASE_URL")  # http://127.0.0.1:7200
APPID = os.environ.get("WECHAT_APPID", "wx0123456789abcdef")
SECRET = "not-a-secret"  # the sidecar has the real one


class Client(werobot.client.Client):
    """Calls the sidecar instead of WeChat."""

    def request(self, method, url, **kwargs):
        return super().request(method, url.replace(WECHAT, SIDECAR, 1), **kwargs)

    def download_media(self, media_id):  # werobot's own goes around request()
        params = {"access_token": self.token, "media_id": media_id}
        return requests.get(SIDECAR + "/cgi-bin/media/get", params=params)


def day(picture):
    """Yields the name and the result of one call after another."""
    # With a robot: robot.client = Client(robot.config)
    client = (Client if SIDECAR else werobot.client.Client)({"APP_ID": APPID, "APP_SECRET": SECRET})

    followers = client.get_followers()
    yield "followers", followers
    users = followers["data"]["openid"]
    yield "user", client.get_user_info(users[0])
    yield "menu", client.create_menu({"button": [{"type": "click", "name": "今日歌曲", "key": "SONG"}]})
    for user in users:
        yield "template", client.send_template_message(user, "TEMPLATE", {"first": {"value": "你好"}})
    yield "message", client.send_text_message(users[0], "你好")
    with open(picture, "rb") as file:
        uploaded = client.upload_media("image", file)
    yield "upload", uploaded
    yield "download", client.download_media(uploaded["media_id"]).content
    yield "qrcode", client.create_qrcode({"action_name": "QR_LIMIT_SCENE", "action_info": {"scene": {"scene_id": 1}}})
    yield "followers", client.get_followers()


if __name__ == "__main__":
    for name, result in day(sys.argv[1]):
        print(name, f"{len(result)} bytes" if isinstance(result, bytes) else result)
