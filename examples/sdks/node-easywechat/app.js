// An ordinary day of an app that uses node-easywechat: node app.js PICTURE
'use strict';

const fs = require('fs');
const {OfficialAccount, MiniApp} = require('node-easywechat');
const WeChatLogin = require('node-socialite/dist/Providers/WeChat').default;

const SIDECAR = process.env.WECHAT_BASE_URL; // http://127.0.0.1:7200
const APPID = process.env.WECHAT_APPID || 'wx0123456789abcdef';
const SECRET = 'not-a-secret'; // the sidecar has the real one

function makeApps() {
  const config = {app_id: APPID, secret: SECRET, http: SIDECAR ? {baseURL: SIDECAR} : {}};
  const account = new OfficialAccount(config);
  const mini = new MiniApp({...config, use_stable_access_token: true});
  if (SIDECAR) {
    // The login of node-socialite does not read http.baseURL.
    account.setOAuthFactory(() => {
      const login = new WeChatLogin({client_id: APPID, client_secret: SECRET, redirect: 'https://app.example/login'});
      login._baseUrl = `${SIDECAR}/sns`;
      return login.scopes('snsapi_userinfo');
    });
  }
  return {account, mini};
}

// Yields the name and the result of one call after another.
async function* day(picture) {
  const {account, mini} = makeApps();
  const client = account.getClient();
  const get = async (path, params) => (await client.get(path, {params})).toObject();
  const post = async (path, json) => (await client.post(path, {json})).toObject();

  const followers = await get('cgi-bin/user/get');
  yield ['followers', followers];
  const users = followers.data.openid;
  yield ['user', await get('cgi-bin/user/info', {openid: users[0], lang: 'zh_CN'})];
  yield ['menu', await post('cgi-bin/menu/create', {button: [{type: 'click', name: '今日歌曲', key: 'SONG'}]})];
  for (const touser of users) {
    const message = {touser, template_id: 'TEMPLATE', data: {first: {value: '你好'}}};
    yield ['template', await post('cgi-bin/message/template/send', message)];
  }
  yield ['message', await post('cgi-bin/message/custom/send', {touser: users[0], msgtype: 'text', text: {content: '你好'}})];
  const formData = {media: fs.createReadStream(picture)};
  const uploaded = (await client.post('cgi-bin/media/upload', {params: {type: 'image'}, formData})).toObject();
  yield ['upload', uploaded];
  const media = {params: {media_id: uploaded.media_id}, responseType: 'arraybuffer'};
  yield ['download', (await client.get('cgi-bin/media/get', media)).getContent()];
  yield ['qrcode', await post('cgi-bin/qrcode/create', {action_name: 'QR_LIMIT_SCENE', action_info: {scene: {scene_id: 1}}})];
  const code = {json: {scene: 'a=1'}, responseType: 'arraybuffer'};
  yield ['wxacode', (await mini.getClient().post('wxa/getwxacodeunlimit', code)).getContent()];
  yield ['login', await mini.getUtils().codeToSession('code-of-a-mini-program')];
  yield ['web login', (await account.getOAuth().userFromCode('code-of-a-page')).getRaw()];
  yield ['device', await post('device/create_qrcode', {device_num: 1, device_id_list: ['lamp']})];
  yield ['device status', await get('device/get_stat', {device_id: 'lamp'})];
  yield ['followers', await get('cgi-bin/user/get')];
}

module.exports = {day};

async function main() {
  for await (const [name, result] of day(process.argv[2])) {
    console.log(name, result);
  }
}

if (require.main === module) main();
