"""An app that has yet to move: wechatpy with its own Redis, straight to WeChat, and with an AppSecret that is wrong, so
that it cannot fetch a token."""

import os

import redis
from requests.adapters import HTTPAdapter
from wechatpy import WeChatClient
from wechatpy.session.redisstorage import RedisStorage

WECHAT = "https://api.weixin.qq.com"
SIMULATED = os.environ["WECHAT_BASE_URL"]


class ToSimulation(HTTPAdapter):
    def send(self, request, *args, **kwargs):
        request.url = SIMULATED + request.url[len(WECHAT):]
        return super().send(request, *args, **kwargs)


def make_client():
    storage = RedisStorage(redis.Redis.from_url(os.environ["LEGACY_REDIS_URL"]), prefix="legacy")
    client = WeChatClient(os.environ["WECHAT_APPID"], "not-a-secret", session=storage)
    client._http.mount(WECHAT, ToSimulation())
    return client


def day(picture):
    """Yields the name and the result of one call after another: of one process all the time, and of one that starts."""
    client = make_client()
    while True:
        yield "followers", client.user.get_followers()
        yield "followers of another", make_client().user.get_followers()
