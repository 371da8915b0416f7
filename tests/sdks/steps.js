// Walks through the day of a Node recipe, one call at a time: node steps.js FOLDER PICTURE
//
// After each call a line of JSON goes out, and a line is waited for before the next. At the end it stays until its
// input ends, so that its memory can be looked into.
'use strict';

const crypto = require('crypto');
const dns = require('dns');
const net = require('net');
const path = require('path');
const readline = require('readline');

// Where this process finds WeChat's own name: at an address of the test's (`ip:port`), by the hosts file, or nowhere.
const WECHAT = 'api.weixin.qq.com';
const {TEST_HOST_AT, TEST_BY_HOSTS} = process.env;
const around = (host) => new Error(`a call went to ${host}, around the sidecar`);
const local = (host) => ['localhost', '127.0.0.1', '::1'].includes(host);
const lookup = dns.lookup;
dns.lookup = (host, options, callback) => {
  if (local(host) || (host === WECHAT && TEST_BY_HOSTS)) return lookup(host, options, callback);
  (callback || options)(around(host));
};
const connect = net.Socket.prototype.connect;
net.Socket.prototype.connect = function (...args) {
  const list = Array.isArray(args[0]) ? args[0] : args;
  if (TEST_HOST_AT && list[0] && list[0].host === WECHAT && Number(list[0].port) === 443) {
    const [host, port] = TEST_HOST_AT.split(':');
    list[0] = {...list[0], host, port: Number(port)};
  }
  const [options] = list;
  if (options && net.isIP(options.host || '') && !local(options.host)) throw around(options.host);
  return connect.apply(this, args);
};

const input = readline.createInterface({input: process.stdin})[Symbol.asyncIterator]();
async function tell(fields) {
  process.stdout.write(`${JSON.stringify(fields)}\n`);
  return !(await input.next()).done;
}

function shown(result) {
  if (!Buffer.isBuffer(result)) return result;
  return {length: result.length, sha256: crypto.createHash('sha256').update(result).digest('hex')};
}

async function main() {
  const [folder, picture] = process.argv.slice(2);
  const app = require(path.join(folder, 'app.js'));
  try {
    for await (const [step, result] of app.day(picture)) {
      if (!await tell({step, result: shown(result)})) return;
    }
  } catch (error) {
    await tell({error: `${error.name}: ${error.message}`.slice(0, 500)});
    return;
  }
  await tell({done: true});
  await input.next();
}

main();
