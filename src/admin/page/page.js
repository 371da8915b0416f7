"use strict";
// SECURITY: what WeChat or an app wrote may be anything, so text goes in by textContent only, never as markup.
(() => {
  const EVERY = 3000; // between two looks, in ms
  const LIFE = 7200; // a token's whole life, in s
  const CHART = 5; // minutes in one bar of a chart

  const WORDS = {
    en: {
      other: "中文", ready: "Ready", not_ready: "Not ready", stopping: "Stopping", lost: "No answer from the sidecar since",
      up: "up", workers: "workers", connections: "connections", default: "default", left: "left", no_token: "no token",
      token: "Token", next: "Next refresh", now: "under way", last: "Last refresh", ago: "ago", why: "Reason", role: "Role", source: "Source",
      store: "Store", fetches: "Fetches", failed: "failed", calls: "Calls", refusals: "Refused tokens", replays: "Sent again",
      breaker: "Breaker", breaker_on: "the next fetch for a refusal waits", foreign: "Voided by someone else", adoptions: "Adopted",
      refreshes: "Refreshes", errors_chart: "Errors", errors: "Last errors", none: "None. Nothing has gone wrong so far.",
      todo: "What to do", times: "times", settings: "Settings in force", key: "Key", value: "Value", origin: "From",
      updated: "updated", hours: "last 6 h", fetchesRole: "fetches from WeChat", centralRole: "asks the central token server",
      followsRole: "follows the store", healthy: "token alive",
    },
    zh: {
      other: "English", ready: "就绪", not_ready: "未就绪", stopping: "正在停止", lost: "以下时间起 sidecar 无响应：",
      up: "已运行", workers: "工作线程", connections: "连接", default: "默认", left: "剩余", no_token: "没有可用的 token",
      token: "Token 指纹", next: "下次刷新", now: "正在进行", last: "上次刷新", ago: "前", why: "原因", role: "角色", source: "来源",
      store: "存储", fetches: "获取次数", failed: "失败", calls: "调用", refusals: "被拒的 token", replays: "重发",
      breaker: "熔断", breaker_on: "因被拒而触发的下次获取需等待", foreign: "被他处作废", adoptions: "从存储采用",
      refreshes: "刷新", errors_chart: "错误", errors: "最近的错误", none: "没有。目前一切正常。",
      todo: "处理办法", times: "次", settings: "生效的配置", key: "键", value: "值", origin: "来自",
      updated: "更新于", hours: "最近 6 小时", fetchesRole: "直接向微信获取", centralRole: "向中控服务器获取",
      followsRole: "跟随存储", healthy: "token 有效",
    },
  };

  // What to do, by the kind of an error or the class of a failed fetch.
  const TODO = {
    en: {
      transient: "Usually nothing: it is tried again by itself. If it stays, check the network and upstream.",
      quota: "Find the other program that fetches with this AppSecret and stop it; clear the quota in the WeChat console if it cannot wait.",
      config: "Compare appid and AppSecret with the WeChat console, and put the current secret into secret_file; it is read again by itself.",
      ip: "Add the address that WeChat saw to the IP whitelist in the WeChat console.",
      "await-admin": "Ask the account's administrator to confirm this address in WeChat; asking more often does not help.",
      human: "Sign in to the WeChat console: the AppSecret or the account is frozen.",
      token: "See the account's card above; calls go on while the token lives.",
      secret: "Put the right AppSecret into the file; the old secret and token are kept until then.",
      store: "Check the store; calls are not affected, but each replica fetches for itself.",
      "foreign-rotation": "Find the other program that fetches with this AppSecret, or reset the AppSecret and give the new one to the sidecar only.",
      "wechat-limit": "Call this API less often, or spread the calls with rates; the WeChat console shows its quota and can clear it.",
      "no-token": "See why no token could be fetched on the account's card.",
      "connect": "Check DNS, egress rules and the network to upstream.",
      "connect-timeout": "Check egress rules and the network to upstream; raise connect_timeout only for slow networks.",
      tls: "Someone else answers for WeChat: a company proxy? Name its CA in upstream_ca_file.",
      "response-timeout": "WeChat is slow; look the call up before it is sent again: it may have taken effect.",
      "idle-timeout": "The reply stopped; look the call up before it is sent again.",
      "upstream-closed": "Look the call up before it is sent again: it may have taken effect.",
      "upstream-malformed": "Something between here and WeChat changes replies; check upstream.",
      "out-of-budget": "Raise replay_budget, or let the app send a Content-Length.",
      unlisted: "See the README, When something fails.",
    },
    zh: {
      transient: "通常无需处理，会自动重试；若一直如此，请检查网络与 upstream。",
      quota: "找出用同一 AppSecret 获取 token 的其他程序并停掉；急用时可在微信后台清零额度。",
      config: "对照微信后台核对 appid 与 AppSecret，把当前的密钥写入 secret_file；文件变化后会自动重新读取。",
      ip: "把微信看到的地址加入微信后台的 IP 白名单。",
      "await-admin": "请账号管理员在微信里确认该地址；频繁重试没有用。",
      human: "登录微信后台：AppSecret 或账号被冻结。",
      token: "见上方账号卡片；token 有效期间调用不受影响。",
      secret: "把正确的 AppSecret 写入文件；在此之前继续使用旧密钥与旧 token。",
      store: "检查存储；调用不受影响，但每个副本各自获取 token。",
      "foreign-rotation": "找出用同一 AppSecret 获取 token 的其他程序；找不到就重置 AppSecret，只交给本 sidecar。",
      "wechat-limit": "降低这个接口的调用频率，或用 rates 摊平；微信后台能看到它的额度，也能清零。",
      "no-token": "见账号卡片上未能获取 token 的原因。",
      "connect": "检查 DNS、出口规则以及到 upstream 的网络。",
      "connect-timeout": "检查出口规则与网络；只有网络确实慢时才调大 connect_timeout。",
      tls: "应答者不是微信：是否有公司代理？把它的 CA 写入 upstream_ca_file。",
      "response-timeout": "微信响应慢；重发前请先查询，该调用可能已生效。",
      "idle-timeout": "响应中断；重发前请先查询。",
      "upstream-closed": "重发前请先查询，该调用可能已生效。",
      "upstream-malformed": "到微信的途中有设备改动了响应；检查 upstream。",
      "out-of-budget": "调大 replay_budget，或让应用带上 Content-Length。",
      unlisted: "见 README 的排错部分。",
    },
  };

  // Reasons of a refresh, as the sidecar words them.
  const REASONS_ZH = [
    [/^startup$/, "启动"], [/^ahead of its end$/, "提前刷新"], [/^the secret changed$/, "密钥已更换"],
    [/^an operator asked$/, "人工刷新"], [/^an operator forced it$/, "人工强制刷新"], [/^adopted from the store$/, "从存储采用"],
    [/^looked for another$/, "向中控服务器询问"],
    [/^(\S+) was refused with (\d+)$/, "$1 被拒（$2）"], [/^(\S+) was reported as refused$/, "$1 被上报为失效"],
    [/^(\S+) was refused at another replica$/, "$1 在其他副本被拒"],
  ];

  const wanted = new URLSearchParams(location.search).get("lang");
  let saved = null;
  try { saved = localStorage.getItem("lang"); } catch { /* storage may be off */ }
  let lang = [wanted, saved, navigator.language.startsWith("zh") ? "zh" : "en"].find((l) => l === "zh" || l === "en");
  let status = null;
  let answeredAt = Date.now();

  const t = (word) => WORDS[lang][word];
  const find = (id) => document.getElementById(id);
  const number = (n) => new Intl.NumberFormat(lang === "zh" ? "zh-CN" : "en").format(n);

  function make(tag, className, ...children) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  function duration(seconds) {
    const units = lang === "zh" ? ["天", "小时", "分", "秒"] : ["d", "h", "min", "s"];
    const parts = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
    const first = parts.findIndex((part) => part > 0);
    if (first < 0) return `0 ${units[3]}`;
    return parts.map((part, i) => `${part} ${units[i]}`).slice(first, first + (first < 2 ? 2 : 1)).join(" ");
  }

  const ago = (seconds) => (lang === "zh" ? `${duration(seconds)}${t("ago")}` : `${duration(seconds)} ${t("ago")}`);

  function reason(words) {
    if (lang === "en") return words;
    const known = REASONS_ZH.find(([pattern]) => pattern.test(words));
    return known ? words.replace(known[0], known[1]) : words;
  }

  const todo = (kind) => TODO[lang][kind] || TODO[lang].unlisted;

  function facts(rows) {
    const list = make("dl");
    for (const [name, value] of rows) if (value !== null) list.append(make("dt", "", name), make("dd", "", value));
    return list;
  }

  function account(a) {
    const card = make("article", "card");
    const state = a.ready ? make("span", "pill good", t("healthy")) : make("span", "pill bad", t("no_token"));
    const name = make("span", "name", a.appid);
    card.append(make("div", "row", make("span", "", name, a.default && status.accounts.length > 1 ? make("span", "soft", ` ${t("default")}`) : null), state));
    const left = a.life_left_seconds;
    const bar = make("div", `life${left === null ? " none" : left < 300 ? " low" : ""}`);
    bar.setAttribute("role", "progressbar");
    bar.setAttribute("aria-valuemin", "0");
    bar.setAttribute("aria-valuemax", String(LIFE));
    bar.setAttribute("aria-valuenow", String(left ?? 0));
    bar.setAttribute("aria-label", `${a.appid}: ${t("left")}`);
    const fill = make("div");
    fill.style.width = `${Math.min(100, (100 * (left ?? 0)) / LIFE)}%`;
    bar.append(fill);
    card.append(bar);
    const next = a.next_fetch_in_seconds === null ? t("now") : duration(a.next_fetch_in_seconds);
    card.append(make("div", "row soft",
      make("span", "", left === null ? t("no_token") : `${duration(left)} ${t("left")}`),
      make("span", "", `${t("next")}: ${next}`)));
    if (a.problem !== null) {
      card.append(make("div", `notice ${a.ready ? "warn" : "bad"}`, a.problem, make("p", "todo", `${t("todo")}: ${todo(a.problem_class)}`)));
    }
    if (a.breaker_seconds !== null) {
      card.append(make("div", "notice warn", `${t("breaker")}: ${t("breaker_on")} ${duration(a.breaker_seconds)}`));
    }
    const role = { fetches: t("fetchesRole"), "asks-central": t("centralRole"), follows: t("followsRole") }[a.role] || a.role;
    card.append(facts([
      [t("token"), a.token],
      [t("last"), a.last_refresh && ago(a.last_refresh.seconds_ago)],
      [t("why"), a.last_refresh && reason(a.last_refresh.reason)],
      [t("role"), role],
      [t("source"), a.source],
      [t("store"), a.store],
      [t("fetches"), `${number(a.fetches)} (${number(a.fetch_failures)} ${t("failed")})`],
      [t("adoptions"), a.adoptions > 0 ? number(a.adoptions) : null],
      [t("foreign"), a.foreign_rotations > 0 ? number(a.foreign_rotations) : null],
      [t("calls"), number(a.counts.calls)],
      [t("refusals"), number(a.counts.refusals)],
      [t("replays"), number(a.counts.replays)],
    ]));
    return card;
  }

  const SVG = "http://www.w3.org/2000/svg";

  function shape(tag, attributes) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
    return element;
  }

  // Minutes, the latest last, as bars of a few minutes each; the latest bar stands at the right edge.
  function bars(minutes) {
    const most = 72;
    const sums = [];
    for (let end = minutes.length; end > 0 && sums.length < most; end -= CHART) {
      sums.unshift(minutes.slice(Math.max(0, end - CHART), end).reduce((sum, n) => sum + n, 0));
    }
    while (sums.length < most) sums.unshift(0);
    return sums;
  }

  function chart(title, key, className) {
    const minutes = status.history.minutes.map((minute) => minute[key]);
    const sums = bars(minutes);
    const highest = Math.max(1, ...sums);
    const total = minutes.reduce((sum, n) => sum + n, 0);
    const svg = shape("svg", { viewBox: "0 0 72 30", preserveAspectRatio: "none", role: "img", "aria-label": `${title}: ${total}` });
    svg.append(shape("line", { x1: 0, y1: 29.5, x2: 72, y2: 29.5 }));
    sums.forEach((sum, x) => {
      if (sum === 0) return;
      const height = Math.max(1, (28 * sum) / highest);
      const bar = shape("rect", { x: x + 0.1, y: 29 - height, width: 0.8, height });
      const words = shape("title", {});
      words.textContent = `${sum} (${ago((72 - x - 1) * CHART * 60)})`;
      bar.append(words);
      svg.append(bar);
    });
    return make("article", `card chart ${className}`, make("div", "row", make("span", "", title), make("span", "soft", t("hours"))), make("b", "", number(total)), svg);
  }

  function error(e) {
    const times = e.times > 1 ? ` × ${number(e.times)}` : "";
    const head = make("div", "row", make("span", "", make("span", "kind", e.kind), e.account ? ` ${e.account}` : "", times), make("span", "soft", ago(e.seconds_ago)));
    return make("li", "", head, make("p", "", e.sentence.charAt(0).toUpperCase() + e.sentence.slice(1)), make("p", "todo soft", `${t("todo")}: ${todo(e.kind)}`));
  }

  function draw() {
    document.documentElement.lang = lang === "zh" ? "zh-CN" : "en";
    for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
    find("language").textContent = t("other");
    if (status === null) return;
    const state = find("state");
    state.textContent = status.stopping ? t("stopping") : status.ready ? t("ready") : t("not_ready");
    state.className = `pill ${status.stopping ? "warn" : status.ready ? "good" : "bad"}`;
    document.title = `${status.ready ? "●" : "○"} wechat-sidecar`;
    find("meta").textContent = [
      status.version, `${t("up")} ${duration(status.uptime_seconds)}`, `${status.workers} ${t("workers")}`, `${number(status.connections.open)} ${t("connections")}`,
    ].join(" · ");
    find("accounts").replaceChildren(...status.accounts.map(account));
    find("charts").replaceChildren(
      chart(t("calls"), "calls", ""), chart(t("errors_chart"), "errors", "worst"), chart(t("refreshes"), "refreshes", ""),
      chart(t("refusals"), "refusals", "hot"), chart(t("replays"), "replays", "hot"));
    find("errors").replaceChildren(
      status.errors.length === 0 ? make("p", "soft", t("none")) : make("ul", "errors", ...status.errors.map(error)));
    const cell = (text) => make("td", "", text);
    find("inforce").replaceChildren(...status.settings.map((s) => make("tr", "", cell(s.key), cell(s.value), cell(s.origin))));
    find("updated").textContent = `${t("updated")} ${new Date(answeredAt).toLocaleTimeString(lang === "zh" ? "zh-CN" : "en")}`;
    document.documentElement.dataset.drawn = String(Number(document.documentElement.dataset.drawn || 0) + 1);
  }

  async function look() {
    const lost = find("lost");
    try {
      const reply = await fetch("status", { cache: "no-store", signal: AbortSignal.timeout(10000) });
      if (!reply.ok) throw new Error(String(reply.status));
      status = await reply.json();
      answeredAt = Date.now();
      lost.hidden = true;
      draw();
    } catch {
      lost.textContent = `${t("lost")} ${new Date(answeredAt).toLocaleTimeString(lang === "zh" ? "zh-CN" : "en")}`;
      lost.hidden = false;
    }
  }

  find("language").addEventListener("click", () => {
    lang = lang === "zh" ? "en" : "zh";
    try { localStorage.setItem("lang", lang); } catch { /* storage may be off */ }
    draw();
  });

  draw();
  (async () => {
    for (;;) {
      if (!document.hidden) await look();
      await new Promise((done) => { setTimeout(done, EVERY); });
    }
  })();
})();
