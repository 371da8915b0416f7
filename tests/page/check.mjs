// The page for people in a real browser: arguments are the admin port, the sidecar's, the simulation's control port, the
// browser, and a folder for screenshots. Driven by run.sh.
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [admin, sidecar, control, browserPath, shots] = process.argv.slice(2);
const HOSTILE = `<img src=x onerror="document.title='taken over'"><script>document.title='taken over'</script>`;
const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

const profile = mkdtempSync(join(tmpdir(), "page-"));
let passed = 0;

async function post(url, body) {
  const reply = await fetch(url, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  return reply.text();
}

const pull = (lever, body = {}) => post(`http://${control}/${lever}`, body);
const call = () => post(`http://${sidecar}/cgi-bin/message/custom/send`, { touser: "oAAAA" });

async function check(title, what) {
  try {
    await what();
  } catch (error) {
    console.error(`FAILED  ${title}`);
    throw error;
  }
  passed += 1;
  console.log(`ok      ${title}`);
}

async function open(options = {}) {
  const context = await chromium.launchPersistentContext(join(profile, String(passed)), {
    executablePath: browserPath, args: FLAGS, locale: "en-GB", viewport: { width: 1280, height: 900 }, ...options,
  });
  const page = context.pages()[0] ?? (await context.newPage());
  const problems = [];
  page.on("console", (line) => { if (["error", "warning"].includes(line.type())) problems.push(line.text()); });
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("request", (request) => { if (!request.url().startsWith(`http://${admin}/`) && !request.url().startsWith("data:")) problems.push(`asks ${request.url()}`); });
  await page.addInitScript(() => {
    globalThis.violations = [];
    document.addEventListener("securitypolicyviolation", (event) => globalThis.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
  });
  const look = async (query = "") => {
    await page.goto(`http://${admin}/${query}`);
    await page.waitForSelector("html[data-drawn]");
  };
  const clean = async () => {
    assert.deepEqual(await page.evaluate(() => globalThis.violations), []);
    assert.deepEqual(problems, []);
  };
  return { context, page, look, clean, problems };
}

const text = (page, selector) => page.locator(selector).innerText();
const fits = async (page) => {
  const [wide, shown] = await page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
  assert.ok(wide <= shown, `${wide} px of content in ${shown} px`);
};

try {
  for (let n = 0; n < 3; n += 1) await call();
  await pull("expire");
  await call();

  {
    const { context, page, look, clean } = await open();
    await check("it shows each account, the life of its token and what it did", async () => {
      await look();
      assert.equal(await page.locator("#accounts article").count(), 2);
      const card = page.locator("#accounts article").first();
      assert.match(await card.innerText(), /wx0123456789abcdef/);
      assert.match(await card.innerText(), /token alive/);
      assert.match(await card.innerText(), /was refused with 42001/);
      const [bar, fill] = await card.locator(".life").evaluate((life) => [life, life.firstElementChild].map((e) => e.getBoundingClientRect().width));
      assert.ok(bar > 200 && fill > bar * 0.95 && fill <= bar, `a fresh token fills its bar: ${fill} of ${bar}`);
    });
    await check("it says what is wrong with the other account, and what to do", async () => {
      const card = page.locator("#accounts article").nth(1);
      assert.match(await card.innerText(), /no token/);
      assert.match(await card.innerText(), /AppSecret is wrong/);
      assert.match(await card.innerText(), /What to do: Compare appid and AppSecret/);
      assert.match(await text(page, "#state"), /Not ready/);
    });
    await check("it draws the last hours", async () => {
      assert.equal(await page.locator("#charts article").count(), 5);
      for (const [title, total] of [["Calls", "4"], ["Refused tokens", "1"], ["Sent again", "1"]]) {
        const chart = page.locator("#charts article", { hasText: title });
        assert.equal(await chart.locator("b").innerText(), total, title);
        assert.equal(await chart.locator("rect").count(), 1, title);
      }
    });
    await check("it tells the last errors in words", async () => {
      const errors = await text(page, "#errors");
      assert.match(errors, /foreign-rotation wx0123456789abcdef/);
      assert.match(errors, /Someone else is fetching tokens for this appid/);
      assert.match(errors, /What to do: Find the other program/);
    });
    await check("it shows the settings in force, without a secret", async () => {
      await page.locator("#settings summary").click();
      const settings = await text(page, "#inforce");
      assert.match(settings, /admin_listen\s+127\.0\.0\.1:/);
      assert.match(settings, /account 1: secret\s+\*\*\*/);
      assert.ok(!(await page.content()).includes("0123456789abcdef0123456789abcdef"));
    });
    await check("it goes on by itself, and keeps what was opened", async () => {
      await call();
      await page.waitForFunction(() => document.querySelector("#charts b").textContent === "5");
      assert.ok(await page.locator("#settings").evaluate((details) => details.open));
    });
    await check("it speaks Chinese at a click, and remembers it", async () => {
      await page.locator("#language").click();
      assert.equal(await text(page, "#state"), "未就绪");
      assert.match(await page.locator("#accounts article").first().innerText(), /被拒（42001）/);
      await look();
      assert.equal(await page.evaluate(() => document.documentElement.lang), "zh-CN");
      await page.screenshot({ path: join(shots, "chinese.png"), fullPage: true });
      await page.locator("#language").click();
    });
    await check("a stranger's markup is text", async () => {
      await pull("fail_fetches", { body: JSON.stringify({ errcode: -1, errmsg: HOSTILE }), times: "forever" });
      await pull("expire");
      await call();
      await page.waitForFunction(() => document.querySelector("#accounts").textContent.includes("<img src=x"));
      assert.equal(await page.locator("main img, main script").count(), 0);
      assert.ok(!(await page.title()).includes("taken over"));
      await page.screenshot({ path: join(shots, "light.png"), fullPage: true });
    });
    await check("its policy allows nothing else, and it broke none", async () => {
      const policy = (await fetch(`http://${admin}/`)).headers.get("content-security-policy");
      assert.match(policy, /^default-src 'none'; style-src 'sha256-[^ ;]+'; script-src 'sha256-[^ ;]+'; connect-src 'self'/);
      await clean();
      const ran = await page.evaluate(() => new Promise((done) => {
        const script = document.createElement("script");
        script.textContent = "globalThis.foreign = true";
        document.body.append(script);
        setTimeout(() => done(globalThis.foreign === true), 100);
      }));
      assert.equal(ran, false, "a script that is not the page's does not run");
    });
    await context.close();
  }

  {
    const { context, page, look, clean } = await open({ locale: "zh-CN", colorScheme: "dark", viewport: { width: 390, height: 844 } });
    await check("to a Chinese browser it speaks Chinese", async () => {
      await look();
      assert.equal(await text(page, "#state"), "未就绪");
      assert.match(await text(page, "#accounts"), /处理办法/);
    });
    await check("it is dark where people want that", async () => {
      const [r, g, b] = await page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number));
      assert.ok(r + g + b < 150, `${r} ${g} ${b}`);
    });
    await check("on a phone nothing is off to the side", async () => {
      await fits(page);
      await page.locator("#settings summary").click();
      await fits(page);
      await page.screenshot({ path: join(shots, "phone-dark.png"), fullPage: true });
      await clean();
    });
    await context.close();
  }

  {
    // Six hours cannot be waited for: the answer is the real one, with other numbers in its history.
    const { context, page, look, clean } = await open();
    await page.route("**/status", async (route) => {
      const reply = await route.fetch();
      const status = await reply.json();
      status.history.minutes = Array.from({ length: 361 }, (_, n) => ({
        calls: 100 + Math.round(80 * Math.sin(n / 30)), errors: n % 90 === 0 ? 3 : 0, refusals: n % 120 === 7 ? 1 : 0,
        replays: n % 120 === 7 ? 1 : 0, refreshes: n % 115 === 7 ? 1 : 0,
      }));
      await route.fulfill({ response: reply, json: status });
    });
    await check("six hours are 72 bars at most, and fit", async () => {
      await look();
      assert.equal(await page.locator("#charts article").first().locator("rect").count(), 72);
      await fits(page);
      await page.screenshot({ path: join(shots, "hours.png"), fullPage: true });
      await clean();
    });
    await check("it says so when the sidecar does not answer any more", async () => {
      await page.unroute("**/status");
      await page.route("**/status", (route) => route.abort());
      await page.waitForSelector("#lost:not([hidden])");
      assert.match(await text(page, "#lost"), /No answer from the sidecar since/);
    });
    await context.close();
  }
  console.log(`all ${passed} checks of the page passed; screenshots are in ${shots}`);
} finally {
  rmSync(profile, { recursive: true, force: true });
}
