// The live page. It only ever sets text: whatever a name or a label holds, it is not read as HTML.
"use strict";

const RATE_SECONDS = 10, LATENCY_SECONDS = 30, CHART_SECONDS = 60, STALE_SECONDS = 3, AGAIN_SECONDS = 10;
const SOURCES = [["early_exit", "early exit"], ["server", "server"], ["fallback", "fallback"]];
const RESULTS = [["answered", "answered"], ["refused", "refused"], ["abandoned", "abandoned"]];

const $ = (id) => document.getElementById(id);
let past = [];            // states of the last minute, oldest first
let state = null;
let paused = false, lastNews = 0, moving = false;

// --- figures, by their names in /metrics ---

const parsed = new Map();
function parse(key) {
  let found = parsed.get(key);
  if (!found) {
    const brace = key.indexOf("{");
    const labels = {};
    if (brace >= 0) {
      for (const [, name, value] of key.slice(brace).matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[name] = value;
    }
    found = { name: brace < 0 ? key : key.slice(0, brace), labels };
    parsed.set(key, found);
  }
  return found;
}

function each(metrics, name, want, use) {
  for (const key in metrics) {
    if (!key.startsWith(name)) continue;
    const { name: full, labels } = parse(key);
    if (full !== name) continue;
    if (Object.keys(want).every((label) => labels[label] === want[label])) use(metrics[key] ?? 0, labels);
  }
}

function sum(metrics, name, want = {}) {
  let total = 0;
  each(metrics, name, want, (value) => { total += value; });
  return total;
}

// The oldest state that is no older than so many seconds.
function before(seconds) {
  return past.find((one) => one.time >= state.time - seconds) ?? state;
}

function grown(name, want = {}, seconds = RATE_SECONDS) {
  return sum(state.metrics, name, want) - sum(before(seconds).metrics, name, want);
}

function rate(name, want = {}) {
  const passed = state.time - before(RATE_SECONDS).time;
  return passed > 0 ? grown(name, want) / passed : null;
}

// Mean and quantiles of a histogram, in its own unit; null where it is empty. As Prometheus interpolates.
function latency(name, want) {
  for (const then of [before(LATENCY_SECONDS).metrics, {}]) {
    const count = sum(state.metrics, `${name}_count`, want) - sum(then, `${name}_count`, want);
    if (!count) continue;
    const total = sum(state.metrics, `${name}_sum`, want) - sum(then, `${name}_sum`, want);
    const buckets = [];
    each(state.metrics, `${name}_bucket`, want, (value, labels) => {
      const below = value - sum(then, `${name}_bucket`, { ...want, le: labels.le });
      buckets.push([labels.le === "+Inf" ? Infinity : Number(labels.le), below]);
    });
    buckets.sort((a, b) => a[0] - b[0]);
    const at = (share) => {
      let low = 0, seen = 0;
      for (const [bound, below] of buckets) {
        if (below >= share * count) {
          if (bound === Infinity) return low;
          return low + (bound - low) * (share * count - seen) / (below - seen);
        }
        low = bound; seen = below;
      }
      return low;
    };
    return { mean: total / count, half: at(0.5), most: at(0.99) };
  }
  return null;
}

// --- text ---

const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const count = (value) => value === null ? "–" : plain.format(value);
const tenth = (value) => value === null ? "–" : fine.format(value);
const share = (value) => Number.isFinite(value) ? `${fine.format(100 * value)} %` : "–";
const bytes = (value) => value === null || !Number.isFinite(value) ? "unknown" : value < 100 ? `${fine.format(value)} B` : `${plain.format(value)} B`;
const ms = (value) => value === undefined ? "–" : (1e3 * value).toLocaleString("en", { maximumSignificantDigits: 3 });
const ratio = (value) => value === null ? "–" : String(Math.round(1e4 * value) / 1e4);

function text(element, said) {
  if (element.textContent !== said) element.textContent = said;
}

// Rows of a table: each row is [class, cells…]; the first cell is the row's header.
function rows(body, wanted, kinds = []) {
  while (body.rows.length > wanted.length) body.deleteRow(-1);
  wanted.forEach(([kind, ...cells], at) => {
    let row = body.rows[at];
    if (!row) {
      row = body.insertRow();
      cells.forEach((_, i) => {
        const cell = document.createElement(i ? "td" : "th");
        if (!i) cell.scope = "row";
        if (kinds[i]) cell.className = kinds[i];
        row.append(cell);
      });
    }
    if (row.className !== kind) row.className = kind;
    cells.forEach((said, i) => {
      text(row.cells[i], said);
      if (kinds[i]?.includes("long") && row.cells[i].title !== said) row.cells[i].title = said;
    });
  });
}

function pairs(list, wanted) {
  while (list.children.length > wanted.length) list.lastChild.remove();
  wanted.forEach(([term, said, bad], at) => {
    let pair = list.children[at];
    if (!pair) {
      pair = document.createElement("div");
      pair.append(document.createElement("dt"), document.createElement("dd"));
      list.append(pair);
    }
    text(pair.children[0], term);
    text(pair.children[1], said);
    pair.children[1].classList.toggle("bad", Boolean(bad));
  });
}

// Stacked columns, one a second. series: [class, name, labels] from below.
function columns(svg, series) {
  const edges = [];
  for (let i = CHART_SECONDS; i >= 0; i -= 1) {
    const due = state.time - i;
    edges.push(past.findLast((one) => one.time <= due + 0.25) ?? null);
  }
  const counts = series.map(([, name, want]) => {
    const sums = edges.map((one) => one && sum(one.metrics, name, want));
    return sums.slice(1).map((value, i) => sums[i] === null || value === null ? 0 : Math.max(0, value - sums[i]));
  });
  const tallest = Math.max(1, ...counts[0].map((_, i) => counts.reduce((all, one) => all + one[i], 0)));
  if (!svg.children.length) {
    for (const [kind] of series) {
      for (let i = 0; i < CHART_SECONDS; i += 1) {
        const column = document.createElementNS("http://www.w3.org/2000/svg", "rect");
        column.setAttribute("class", kind);
        column.setAttribute("x", String(4 * i));
        column.setAttribute("width", "3");
        svg.append(column);
      }
    }
  }
  for (let i = 0; i < CHART_SECONDS; i += 1) {
    let top = 48;
    series.forEach((_, at) => {
      const height = 46 * counts[at][i] / tallest;
      top -= height;
      const column = svg.children[at * CHART_SECONDS + i];
      column.setAttribute("y", top.toFixed(2));
      column.setAttribute("height", height.toFixed(2));
    });
  }
}

function split(body, name, label, kinds) {
  const all = sum(state.metrics, name), lately = grown(name);
  rows(body, kinds.map(([value, title]) => {
    const own = sum(state.metrics, name, { [label]: value });
    return [value, title, count(own), share(own / all), share(grown(name, { [label]: value }) / lately)];
  }), ["key"]);
}

// --- what a device shows ---

function showDevice() {
  const name = "offramp_device_images_total", here = { source: "early_exit" };
  const images = sum(state.metrics, name);
  const lately = grown(name);
  text($("exit-rate"), share(lately ? grown(name, here) / lately : sum(state.metrics, name, here) / images));
  text($("image-rate"), tenth(rate(name)));
  text($("images"), count(images));
  split($("sources"), name, "source", SOURCES);
  columns($("chart"), SOURCES.map(([source]) => [source, name, { source }]));
  showBytes(images);
  showThreshold();
  showLink();
  rows($("recent"), state.recent.map((one) => [one.source, one.name.split("/").pop() || `#${one.index}`, one.unknown ? `${one.label} (unknown)` : one.label,
    one.confidence.toFixed(4), one.by ?? (SOURCES.find(([source]) => source === one.source) ?? ["", one.source])[1],
    ms(one.latency_seconds), count(one.payload_bytes)]), ["long", "text long", "", "key text", "", ""]);
}

function showBytes(images) {
  const of = (name, want) => images ? sum(state.metrics, name, want) / images : null;
  let wire = 0;
  each(state.metrics, "offramp_device_wire_bytes_total", {}, () => { wire += 1; });
  const shown = [
    ["payload, over all images", of("offramp_device_payload_bytes_total"), "early_exit"],
    ["on the wire, both directions", wire ? of("offramp_device_wire_bytes_total") : null, "early_exit"],
    ["each image as WebP instead", state.webp ? state.webp.mean_bytes : null, "server"],
  ];
  const most = Math.max(...shown.map(([, value]) => value ?? 0), 1);
  const box = $("bytes");
  box.className = "bars";
  shown.forEach(([title, value, kind], at) => {
    let one = box.children[at];
    if (!one) {
      one = document.createElement("div");
      const line = document.createElement("p"), bar = document.createElement("div");
      line.append(document.createElement("span"), document.createElement("strong"));
      bar.className = `bar ${kind}`;
      one.append(line, bar);
      box.append(one);
    }
    text(one.children[0].children[0], title);
    text(one.children[0].children[1], bytes(value));
    one.children[1].style.width = `${100 * (value ?? 0) / most}%`;
    one.children[1].hidden = value === null;
  });
  text($("webp-note"), state.webp
    ? `WebP at quality ${state.webp.quality} and the network’s size, measured on ${count(state.webp.images)} of these images`
    : "WebP: not measured yet, or these inputs are not pictures");
}

function nearest(threshold) {
  return state.curve.reduce((best, one) =>
    !best || Math.abs(one.threshold - threshold) < Math.abs(best.threshold - threshold) ? one : best, null);
}

function showExpected(threshold) {
  const expected = nearest(threshold);
  text($("expected-exit"), expected ? share(expected.exit_rate) : "unknown");
  text($("expected-accuracy"), expected ? share(expected.accuracy) : "unknown");
}

function showThreshold() {
  const { settable, token } = state.control, can = settable && !state.steered;
  for (const id of ["slider", "number", "set"]) $(id).disabled = !can;
  $("token-row").hidden = !(can && token);
  text($("threshold-now"), ratio(state.threshold));
  if (!can) {
    text($("threshold-status"), state.steered ? "Steered by a budget." : "Read only here: T_c is set on the device itself, or with --page-token-file.");
  }
  if (moving) return;
  $("slider").value = String(state.threshold);
  if (document.activeElement !== $("number")) $("number").value = ratio(state.threshold);
  showExpected(state.threshold);
}

async function setThreshold(value) {
  const headers = { "Content-Type": "application/json" };
  if ($("token").value) headers.Authorization = `Bearer ${$("token").value}`;
  let said;
  try {
    const reply = await fetch("threshold", { method: "POST", headers, body: JSON.stringify({ threshold: value }) });
    const body = await reply.text();
    said = reply.ok ? `Set to ${JSON.parse(body).threshold}.` : `Not set: ${body.trim()}`;
  } catch {
    said = "Not set: no answer from the program.";
  }
  moving = false;
  text($("threshold-status"), said);
}

function showLink() {
  const prefix = "offramp_device_", now = (name, want) => sum(state.metrics, prefix + name, want);
  const up = now("connected") > 0, open = now("breaker_open") > 0;
  const causes = [];
  each(state.metrics, `${prefix}frames_unanswered_total`, {}, (value, labels) => {
    if (value) causes.push(`${count(value)} ${labels.cause}`);
  });
  const idle = !now("connects_total") && !now("reconnects_total");
  const by = [];
  each(state.metrics, `${prefix}answers_total`, {}, (value, { part, cut_short }) => {
    by.push([`answered by part ${part}${cut_short === "true" ? ", cut short" : ""}`, count(value)]);
  });
  if (state.servers.length > 1) {
    each(state.metrics, `${prefix}server_answers_total`, {}, (value, { server }) => {
      by.push([`answered by ${server}`, count(value)]);
    });
  }
  pairs($("link"), [
    ["stream", up ? "open" : idle ? "none yet: nothing was sent" : "down", !up && !idle],
    ["server", state.servers.join(", ")],
    ["breaker", open ? "open: frames are turned away" : "closed", open],
    ["fallbacks", count(now("images_total", { source: "fallback" }))],
    ["frames without an answer", causes.join(", ") || "0"],
    ["streams that were accepted", count(now("connects_total"))],
    ["attempts after a failure", count(now("reconnects_total"))],
    ["changes to another server", count(now("failovers_total"))],
    ["in the spool", count(now("spool_entries"))],
    ...by,
  ]);
  text($("failure"), state.failure ? `Last failure: ${state.failure}` : "");
}

// --- what a server shows ---

let taken = new Map();    // frames of a stream ten seconds ago, by its device

function showServer() {
  const prefix = "offramp_server_", now = (name, want) => sum(state.metrics, prefix + name, want);
  text($("frame-rate"), tenth(rate(`${prefix}frames_total`, { result: "answered" })));
  text($("open-streams"), count(now("open_streams")));
  text($("hosts"), count(state.hosts));
  split($("results"), `${prefix}frames_total`, "result", RESULTS);
  columns($("frame-chart"), RESULTS.map(([result]) => [result, `${prefix}frames_total`, { result }]));
  const runs = grown(`${prefix}batch_size_count`);
  text($("batch-mean"), runs ? tenth(grown(`${prefix}batch_size_sum`) / runs) : "–");
  const limits = [];
  each(state.metrics, `${prefix}batch_limit`, {}, (value) => limits.push(count(value)));
  text($("batch-limit"), limits.join(", ") || "–");
  text($("queue"), `${count(now("queue_depth"))} of ${count(now("limit", { limit: "queue" }))}`);
  const frames = now("frames_total");
  text($("frame-bytes"), frames ? bytes(now("payload_bytes_total") / frames) : "–");
  const received = rate(`${prefix}message_bytes_total`, { direction: "received" });
  text($("received-rate"), received === null ? "–" : bytes(received));
  $("upstream-section").hidden = !state.upstream;
  if (state.upstream) showUpstream();
  const then = before(RATE_SECONDS);
  taken = new Map((then.streams ?? []).map((one) => [one.peer, one.taken]));
  const passed = state.time - then.time;
  rows($("streams"), state.streams.map((one) => ["", one.peer, one.bundle ?? "no hello yet", age(one.seconds),
    count(one.taken), passed > 0 ? tenth((one.taken - (taken.get(one.peer) ?? one.taken)) / passed) : "–",
    count(one.unanswered), count(one.strikes)]), ["", "text long"]);
}

function showUpstream() {
  const prefix = "offramp_server_", now = (name, want) => sum(state.metrics, prefix + name, want);
  const up = now("upstream_connected") > 0, open = now("upstream_breaker_open") > 0;
  const idle = !now("upstream_connects_total") && !now("upstream_reconnects_total");
  pairs($("upstream"), [
    ["stream", up ? "open" : idle ? "none yet: nothing was sent" : "down", !up && !idle],
    ["server", state.upstream.join(", ")],
    ["breaker", open ? "open: this part’s exit answers" : "closed", open],
    ["answered by this part’s exit", count(now("answers_total", { by: "exit" }))],
    ["answered by the parts behind", count(now("answers_total", { by: "upstream" }))],
    ["by this exit, as they did not", count(now("answers_total", { by: "fallback" }))],
    ["payload sent on", bytes(now("upstream_payload_bytes_total"))],
  ]);
}

function age(seconds) {
  return seconds < 120 ? `${plain.format(seconds)} s` : seconds < 7200 ? `${plain.format(seconds / 60)} min` : `${fine.format(seconds / 3600)} h`;
}

// --- both ---

function stages() {
  if (state.program === "cloud-server") {
    return [["decode a frame", "offramp_server_decode_seconds", {}], ["wait for the tail", "offramp_server_queue_seconds", {}],
      ["run the tail, a batch", "offramp_server_inference_seconds", {}]];
  }
  const found = [];
  each(state.metrics, "offramp_device_stage_seconds_count", {}, (value, { stage }) => {
    if (value) found.push([stage, "offramp_device_stage_seconds", { stage }]);
  });
  return [...found, ["round trip", "offramp_device_round_trip_seconds", {}]];
}

// Where nothing was audited and nothing unknown there is nothing to show.
function showChecks() {
  const prefix = "offramp_device_", found = [];
  const audited = (result) => sum(state.metrics, `${prefix}audits_total`, { result });
  const [agrees, differs, lost] = ["agrees", "differs", "lost"].map(audited);
  if (agrees + differs + lost) {
    found.push(["audits: the server agrees", `${count(agrees)} of ${count(agrees + differs)}, ${share(agrees / (agrees + differs))}`]);
    found.push(["on the bundle’s test images", share(state.metrics[`${prefix}expected_agreement_ratio`] ?? NaN)]);
    found.push(["audits without an answer", count(lost)]);
  }
  const unknown = sum(state.metrics, `${prefix}unknown_total`);
  if (unknown) found.push(["unlike all that the bundle knows", count(unknown)]);
  $("checks-section").hidden = !found.length;
  pairs($("checks"), found);
}

function showAll() {
  if (!$("all").open) return;
  const wanted = $("filter").value.toLowerCase();
  const keys = Object.keys(state.metrics).filter((key) => key.toLowerCase().includes(wanted));
  rows($("metrics"), keys.map((key) => ["", key, state.metrics[key] === null ? "unknown" : String(state.metrics[key])]));
}

function show() {
  const device = state.program === "edge-device";
  for (const section of document.querySelectorAll("[data-of]")) section.hidden = section.dataset.of !== state.program;
  document.title = `${state.program} · ${state.bundle}`;
  text($("program"), state.program);
  text($("bundle"), state.bundle);
  text($("version"), `Offramp ${state.version}. The same figures are at /metrics.`);
  if (device) showDevice(); else showServer();
  rows($("latency"), stages().map(([title, name, want]) => {
    const found = latency(name, want);
    return ["", title, ms(found?.mean), ms(found?.half), ms(found?.most)];
  }));
  showChecks();
  showAll();
}

function news(said, kind = "") {
  text($("news"), said);
  $("news").className = `badge ${kind}`;
}

function take(event) {
  lastNews = performance.now();
  if (paused) return;
  const next = JSON.parse(event.data);
  if (state && next.time < state.time) past = [];   // the program was started again
  state = next;
  past.push(next);
  while (past.length > 1 && past[1].time < next.time - CHART_SECONDS - 2) past.shift();
  news("live", "good");
  show();
}

function listen() {
  const source = new EventSource("events");
  source.onmessage = take;
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) {
      news(`refused: as many viewers as may be; again in ${AGAIN_SECONDS} s`, "bad");
      setTimeout(listen, AGAIN_SECONDS * 1e3);
    } else {
      news("no connection to the program", "bad");
    }
  };
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  text($("pause"), paused ? "Go on" : "Pause");
  news(paused ? "paused" : "waiting");
});
$("slider").addEventListener("input", () => {
  moving = true;
  $("number").value = $("slider").value;
  showExpected(Number($("slider").value));
});
$("slider").addEventListener("change", () => setThreshold(Number($("slider").value)));
$("threshold").addEventListener("submit", (event) => {
  event.preventDefault();
  setThreshold(Number($("number").value));
});
$("filter").addEventListener("input", () => { if (state) showAll(); });
$("all").addEventListener("toggle", () => { if (state) showAll(); });
setInterval(() => {
  const quiet = (performance.now() - lastNews) / 1e3;
  if (!paused && lastNews && quiet > STALE_SECONDS && $("news").classList.contains("good")) {
    news(`no news for ${plain.format(quiet)} s`, "bad");
  }
}, 1000);
listen();
