// Node's clients against a sidecar: fetch (undici) and http with and without keep-alive. BASE and CONTROL come from
// `rig.py with`; nothing but node's own modules is used.
import { appendFileSync } from 'node:fs';
import { createHash, randomBytes, randomUUID } from 'node:crypto';
import http from 'node:http';
import { Readable } from 'node:stream';

const { BASE, CONTROL, UPSTREAM, E2E_TMP } = process.env;
const SEND = '/cgi-bin/message/custom/send';
const INFO = '/cgi-bin/user/info?openid=oAbc&lang=zh_CN&q=%E4%BD%A0+a%20b%2F&access_token=anything';
const JSON_BODY = JSON.stringify({ touser: 'oAbc', text: { content: '你好 <b>&' } });

function check(name, got, expected) {
  const [is, should] = [JSON.stringify(got), JSON.stringify(expected)];
  console.log(is === should ? `ok   ${name} (${UPSTREAM})`
    : `FAIL ${name} (${UPSTREAM})\n     expected: ${should}\n     got:      ${is.slice(0, 600)}`);
}

const sha = (data) => createHash('sha256').update(data).digest('hex');
const control = async (path, body) =>
  (await fetch(CONTROL + path, body && { method: 'POST', body: JSON.stringify(body) })).json();

function keep(head, body) {
  appendFileSync(`${E2E_TMP}/received/node`, JSON.stringify(head) + '\n');
  appendFileSync(`${E2E_TMP}/received/node`, body.subarray(0, 65536));
}

// Each client is a function: what, method, path, body (string, Buffer, Readable or FormData), headers.
async function byFetch(method, path, body, headers = {}) {
  // A stream has no length, so fetch sends it chunked, and wants to be told that it need not read the reply meanwhile.
  const streams = body instanceof ReadableStream;
  const reply = await fetch(BASE + path, { method, body, headers, ...(streams && { duplex: 'half' }), signal: AbortSignal.timeout(20000) });
  return { status: reply.status, head: Object.fromEntries(reply.headers), body: Buffer.from(await reply.arrayBuffer()) };
}

const byHttp = (agent) => (method, path, body, headers = {}) => new Promise((resolve, reject) => {
  const request = http.request(BASE + path, { method, agent, headers, timeout: 20000 }, (reply) => {
    const pieces = [];
    reply.on('data', (piece) => pieces.push(piece)).on('error', reject)
      .on('end', () => resolve({ status: reply.statusCode, head: reply.headers, body: Buffer.concat(pieces) }));
  });
  request.on('error', reject).on('timeout', () => request.destroy(new Error('no answer within 20 s')));
  if (body instanceof ReadableStream) Readable.fromWeb(body).pipe(request);
  else request.end(body);
});

function stream(data, piece) {
  let at = 0;
  return new ReadableStream({
    pull(controller) {
      if (at >= data.length) return controller.close();
      controller.enqueue(data.subarray(at, at += piece));
    },
  });
}

function multipart(data) {
  const boundary = randomUUID();
  const head = `--${boundary}\r\nContent-Disposition: form-data; name="media"; filename="a.jpg"\r\n\r\n`;
  return [Buffer.concat([Buffer.from(head), data, Buffer.from(`\r\n--${boundary}--\r\n`)]),
    { 'content-type': `multipart/form-data; boundary=${boundary}` }];
}

async function tour(name, client, when, before = async () => {}) {
  const call = async (...args) => {
    await before();
    try {
      const got = await client(...args);
      keep(got.head, got.body);
      try { got.errcode = JSON.parse(got.body).errcode; } catch { got.errcode = got.body.toString('latin1').slice(0, 200); }
      return got;
    } catch (error) {
      return { status: String(error.cause ?? error), head: {}, body: Buffer.alloc(0) };
    }
  };
  const is = (what, got, expected) => check(`${name}: ${what} ${when}`, got, expected);
  let got = await call('GET', INFO);
  is('GET', [got.status, got.body.includes('oAbc')], [200, true]);
  got = await call('POST', SEND, JSON_BODY, { 'content-type': 'application/json' });
  is('POST', [got.status, got.errcode], [200, 0]);
  got = await call('POST', SEND, stream(Buffer.from(JSON_BODY), 5));
  is('POST of a stream (chunked)', [got.status, got.errcode], [200, 0]);
  const photo = randomBytes(40000);
  got = await call('POST', '/cgi-bin/media/upload?type=image', ...multipart(photo));
  got = await call('GET', '/cgi-bin/media/get?media_id=' + JSON.parse(got.body.length ? got.body : '{}').media_id);
  is('a multipart upload comes back', [got.status, sha(got.body)], [200, sha(photo)]);
  if (client === byFetch) {
    const form = new FormData();
    form.append('media', new Blob([photo], { type: 'image/jpeg' }), 'a.jpg');
    got = await call('POST', '/cgi-bin/media/upload?type=image', form);
    got = await call('GET', '/cgi-bin/media/get?media_id=' + JSON.parse(got.body.length ? got.body : '{}').media_id);
    is('a FormData upload comes back', [got.status, sha(got.body)], [200, sha(photo)]);
  }
  const big = randomBytes(6000000);
  got = await call('POST', '/cgi-bin/media/upload', stream(big, 100000), { 'x-call-id': randomUUID() });
  is('6 MB of a stream', [got.status, (await control('/seen?limit=1')).at(-1).body_sha256], [200, sha(big)]);
  got = await call('HEAD', INFO);
  is('HEAD', [got.status, got.body.length], [200, 0]);
  got = await call('GET', '/cgi-bin/user/info?openid=');
  is('an error that is no token error comes as it is', [got.status, got.errcode], [200, 40003]);
}

// Calls that all begin while the token dies again and again.
async function storm(name, client) {
  await control('/reset_counts', {});
  let sent = 0, turn = 0, excused = 0;
  const wrong = {}, until = Date.now() + 3000;
  const worker = async () => {
    while (Date.now() < until) {
      // As in storm.py: without a pause a call takes longer than a token lives.
      await new Promise((resolve) => setTimeout(resolve, Math.random() * 800));
      sent += 1;
      let told;
      try {
        const { status, head, body } = await client('POST', SEND, JSON_BODY, { 'x-call-id': randomUUID() });
        told = `${status} ${body.toString('latin1').slice(0, 120)}`;
        if (/^200 \{\s*"errcode":\s*0,/.test(told)) continue;
        // Both of its tokens died under it: storm.py says why that is excused.
        if (/^200 .*4[02]001/s.test(told) && head['x-wechat-sidecar-attempts'] === '2') { excused += 1; continue; }
      } catch (error) { told = String(error.cause ?? error); }
      wrong[told] = (wrong[told] ?? 0) + 1;
    }
  };
  const rotator = async () => {
    while (Date.now() < until) {
      await control(turn++ % 2 ? '/rotate' : '/expire', {});
      const { accepted } = await control('/counts');
      // Every 100 ms, and on a busy machine not before the new token was of use: rig.py's Rotator says why.
      do await new Promise((resolve) => setTimeout(resolve, 100));
      while ((await control('/counts')).accepted < accepted + 30 && Date.now() < until);
    }
  };
  await Promise.all([rotator(), ...Array.from({ length: 200 }, worker)]);
  const counts = await control('/counts');
  check(`${name}: 200 at once, ${sent} calls, ${turn} dead tokens: none is noticed`, wrong, {});
  check(`${name}: each was accepted once`, [counts.accepted, counts.max_accepts_of_a_call], [sent - excused, 1]);
  check(`${name}: calls that met two dead tokens are rare (${excused})`, excused <= sent / 10, true);
  check(`${name}: none was sent a third time`, counts.max_sends_of_a_call <= 2, true);
  check(`${name}: ${counts.fetches.stable} fetches are no more than tokens that died`, counts.fetches.stable <= turn + 1, true);
}

const clients = {
  'node fetch': byFetch,
  'node http, keep-alive': byHttp(new http.Agent({ keepAlive: true })),
  'node http, Connection: close': byHttp(new http.Agent({ keepAlive: false })),
};
let turn = 0;
const kill = () => control(turn++ % 2 ? '/rotate' : '/expire', {});
for (const [name, client] of Object.entries(clients)) {
  await tour(name, client, 'with a good token');
  await tour(name, client, 'with a token that just died', kill);
}
await storm('node fetch', byFetch);
const counts = await control('/counts');
check('node: the upstream saw no placeholder, second token or chunked request',
  [counts.unknown_tokens, counts.duplicate_tokens, counts.chunked_refused], [0, 0, 0]);
process.exit(0);
