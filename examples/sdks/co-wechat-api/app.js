// An ordinary day of an app that uses co-wechat-api: node app.js PICTURE
'use strict';

const fs = require('fs/promises');
const API = require('co-wechat-api');

const SIDECAR = process.env.WECHAT_BASE_URL; // http://127.0.0.1:7200
const APPID = process.env.WECHAT_APPID || 'wx0123456789abcdef';
const SECRET = 'not-a-secret'; // the sidecar has the real one
const WECHAT = /^https?:\/\/(file\.)?api\.weixin\.qq\.com/;

function makeApi() {
  // The token in a file, as the SDK's documentation advises where there are several processes.
  const load = async () => JSON.parse(await fs.readFile('access_token.txt', 'utf8').catch(() => 'null'));
  const save = (token) => fs.writeFile('access_token.txt', JSON.stringify(token));
  const api = new API(APPID, SECRET, load, save);
  if (SIDECAR) {
    const {request} = api;
    api.request = function (url, ...rest) {
      return request.call(this, url.replace(WECHAT, SIDECAR), ...rest);
    };
  }
  return api;
}

// Yields the name and the result of one call after another.
async function* day(picture) {
  const api = makeApi();

  const followers = await api.getFollowers();
  yield ['followers', followers];
  const users = followers.data.openid;
  yield ['user', await api.getUser(users[0])];
  yield ['menu', await api.createMenu({button: [{type: 'click', name: '今日歌曲', key: 'SONG'}]})];
  for (const user of users) {
    yield ['template', await api.sendTemplate(user, 'TEMPLATE', '', '#000000', {first: {value: '你好'}})];
  }
  yield ['message', await api.sendText(users[0], '你好')];
  const uploaded = await api.uploadMedia(picture, 'image');
  yield ['upload', uploaded];
  yield ['download', await api.getMedia(uploaded.media_id)];
  yield ['qrcode', await api.createLimitQRCode(1)];
  yield ['wxacode', await api.getWXACodeUnlimit('a=1', 'pages/index')];
  yield ['login', await api.code2Session('code-of-a-mini-program')];
  yield ['device', await api.createDeviceQRCode(['lamp'])];
  yield ['device status', await api.getDeviceStatus('lamp')];
  yield ['followers', await api.getFollowers()];
}

module.exports = {day};

async function main() {
  for await (const [name, result] of day(process.argv[2])) {
    console.log(name, result);
  }
}

if (require.main === module) main();
