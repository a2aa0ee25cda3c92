"use strict";
// The page's behaviour: unpack the data, draw figures when they come into view, sort tables, explore queries.
// Texts of the runs only ever become text nodes, never markup.

const $ = (id) => document.getElementById(id);

async function unpack(id) {
  const holder = $(id);
  const bytes = Uint8Array.from(atob(holder.textContent.trim()), (c) => c.charCodeAt(0));
  holder.remove();
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") node.className = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

// ---------------------------------------------------------------- tables

function sortTable(table, header, column) {
  const numeric = header.classList.contains("number");
  const now = header.getAttribute("aria-sort");
  const direction = now === "none" ? (numeric ? "descending" : "ascending") : now === "ascending" ? "descending" : "ascending";
  for (const other of table.tHead.rows[0].cells) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", direction);
  const sign = direction === "ascending" ? 1 : -1;
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row, index) => ({ row, index, key: row.cells[column].dataset.sort ?? "" }));
  rows.sort((a, b) => {
    if ((a.key === "") !== (b.key === "")) return a.key === "" ? 1 : -1; // what was not measured stays last both ways
    const order = numeric ? Number(a.key) - Number(b.key) : a.key.localeCompare(b.key, undefined, { numeric: true });
    return sign * order || a.index - b.index;
  });
  body.append(...rows.map((item) => item.row));
}

function wireTables() {
  for (const table of document.querySelectorAll("table.sortable")) {
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      for (const button of header.querySelectorAll("button")) {
        const by = Number(button.dataset.column ?? column); // on a narrow screen the first header has the labels' buttons
        button.addEventListener("click", () => sortTable(table, headers[by], by));
      }
    });
  }
  for (const box of document.querySelectorAll("input[data-rows]")) {
    const rows = box.closest("section").querySelectorAll(`tr.${box.dataset.rows}`);
    box.addEventListener("change", () => rows.forEach((row) => { row.hidden = !box.checked; }));
  }
}

// ---------------------------------------------------------------- figures

const drawn = new Map(); // element -> name of the figure in it
let figures = {};
const canHover = matchMedia("(hover: hover)"); // on a touch screen a drag must scroll the page, not zoom a figure

function themed(layout) {
  const style = getComputedStyle(document.body);
  const colour = (name) => {
    const probe = element("span", { style: `color: var(${name})` });
    document.body.append(probe);
    const value = getComputedStyle(probe).color;
    probe.remove();
    return value;
  };
  const text = colour("--text"), line = colour("--line"), panel = colour("--panel");
  const result = structuredClone(layout);
  Object.assign(result, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" });
  result.font = { family: style.fontFamily, size: 12, color: text };
  result.hoverlabel = { bgcolor: panel, bordercolor: line, font: { color: text } };
  if (!canHover.matches) result.dragmode = false;
  result.modebar = { bgcolor: "rgba(0,0,0,0)", color: line, activecolor: text };
  for (const axis of Object.keys(result).filter((key) => /^[xy]axis/.test(key))) {
    Object.assign(result[axis], { gridcolor: line, zerolinecolor: colour("--muted"), linecolor: line, tickcolor: line });
  }
  return result;
}

async function draw(place, name) {
  const figure = figures[name];
  if (!figure) return;
  drawn.set(place, name);
  place.style.minHeight = `${figure.plot.layout.height}px`; // or the drawing would cover what stands below
  const settings = {
    responsive: true, displaylogo: false, showLink: false, showSendToCloud: false,
    displayModeBar: canHover.matches ? "hover" : false, modeBarButtons: [["toImage", "resetScale2d"]],
  };
  await Plotly.react(place, figure.plot.data, themed(figure.plot.layout), settings);
  place.setAttribute("aria-label", figure.alt);
}

function redrawAll() {
  for (const [place, name] of drawn) draw(place, name);
}

function watchFigures() {
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      observer.unobserve(entry.target);
      draw(entry.target, entry.target.dataset.figure);
    }
  }, { rootMargin: "500px" });
  for (const place of document.querySelectorAll(".plot[data-figure]")) observer.observe(place);
}

function wireTheme() {
  const button = $("theme");
  const choices = ["automatic", "light", "dark"];
  button.addEventListener("click", () => {
    const next = choices[(choices.indexOf(button.dataset.theme) + 1) % choices.length];
    button.dataset.theme = next;
    button.textContent = `Colours: ${next}`;
    document.documentElement.style.colorScheme = next === "automatic" ? "" : next;
    redrawAll();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
}

// ---------------------------------------------------------------- query explorer

const PAGE = 50;
const explorer = { pair: null, number: 0, haystack: [], delta: [], hits: [], shown: 0, current: -1 };
let documents = { ids: [], texts: [] };
let pairs = [];

function difference(pair, i) {
  if (!pair.direct || !pair.reason) return null;
  const before = pair.direct.ndcg[i], after = pair.reason.ndcg[i];
  return before === null || after === null ? null : after - before;
}

const verdict = (delta) => (delta === null ? "unknown" : delta > 1e-9 ? "helped" : delta < -1e-9 ? "hurt" : "unchanged");
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);

function choosePair(number) {
  const pair = pairs[number];
  const reasoning = pair.reason?.reasoning ?? [];
  for (const choice of document.querySelectorAll("select.pair")) choice.value = String(number);
  Object.assign(explorer, { pair, number, current: -1 });
  explorer.delta = pair.ids.map((_, i) => difference(pair, i));
  explorer.haystack = pair.ids.map((id, i) => `${id}\n${pair.texts[i]}\n${reasoning[i] ?? ""}`.toLowerCase());
  const counts = { all: pair.ids.length, helped: 0, hurt: 0, unchanged: 0 };
  for (const delta of explorer.delta) if (delta !== null) counts[verdict(delta)] += 1;
  for (const [kind, count] of Object.entries(counts)) {
    const input = $(`show-${kind}`);
    input.disabled = kind !== "all" && !(pair.direct && pair.reason);
    input.closest("label").querySelector("span").textContent = `${kind} (${count.toLocaleString("en")})`;
  }
  if ($("filter").querySelector(":checked").disabled) $("show-all").checked = true;
  for (const kind of ["difference", "length"]) {
    const name = `${kind}-${number}`, holder = $(`${kind}-figure`);
    holder.hidden = !figures[name];
    if (!figures[name]) continue;
    holder.querySelector("h3").textContent = figures[name].title;
    holder.querySelector("figcaption").textContent = figures[name].caption;
    const place = holder.querySelector(".plot");
    place.hidden = !figures[name].plot; // left out: its sentence stands alone
    if (place.hidden) continue;
    if (window.Plotly) draw(place, name).then(() => kind === "difference" && wireClicks(place));
  }
  search();
  if (explorer.hits.length) show(explorer.hits[0], false);
}

function wireClicks(place) {
  if (place.dataset.wired) return;
  place.dataset.wired = "yes";
  place.on("plotly_click", (event) => {
    const index = explorer.pair.ids.indexOf(String(event.points[0].customdata));
    if (index >= 0) show(index, true);
  });
}

function search() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const kind = $("filter").querySelector(":checked").value;
  const { delta, haystack } = explorer;
  const hits = [];
  for (let i = 0; i < haystack.length; i++) {
    if (kind !== "all" && verdict(delta[i]) !== kind) continue;
    if (words.every((word) => haystack[i].includes(word))) hits.push(i);
  }
  const order = $("order").value;
  const tokens = explorer.pair.reason?.tokens ?? [];
  const key = { gain: (i) => -(delta[i] ?? -9), loss: (i) => delta[i] ?? 9, length: (i) => -(tokens[i] ?? -1) }[order];
  if (key) hits.sort((a, b) => key(a) - key(b) || a - b);
  explorer.hits = hits;
  explorer.shown = 0;
  $("hits").replaceChildren();
  more();
  $("count").textContent = `${hits.length.toLocaleString("en")} of ${explorer.pair.ids.length.toLocaleString("en")} queries`;
}

function more() {
  const list = $("hits");
  list.querySelector(".more")?.parentElement.remove();
  const next = explorer.hits.slice(explorer.shown, explorer.shown + PAGE);
  list.append(...next.map(hit));
  explorer.shown += next.length;
  const left = explorer.hits.length - explorer.shown;
  if (left > 0) {
    const button = element("button", { type: "button", class: "more" }, `Show ${Math.min(PAGE, left)} more of ${left.toLocaleString("en")}`);
    button.addEventListener("click", () => {
      const first = explorer.shown;
      more();
      list.children[first]?.querySelector("button").focus();
    });
    list.append(element("li", {}, button));
  }
}

function hit(i) {
  const pair = explorer.pair, delta = explorer.delta[i];
  const badge = element("span", { class: `delta ${verdict(delta)}` });
  if (delta === null) badge.textContent = score((pair.reason ?? pair.direct).ndcg[i]);
  else badge.append(signed(delta), element("span", { class: "skip" }, ` ${verdict(delta)}`));
  const button = element("button", { type: "button", "data-query": i }, element("span", { class: "text" }, pair.texts[i] || pair.ids[i]), badge);
  if (i === explorer.current) button.setAttribute("aria-current", "true");
  button.addEventListener("click", () => show(i, true));
  return element("li", {}, button);
}

const score = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));

function ranking(side, i, judged) {
  const list = element("ol", { class: "ranking" });
  side.top[i].forEach((number, position) => {
    const relevance = judged.get(number);
    const value = side.scores[i][position];
    const head = element("span", {}, element("span", { class: "id" }, documents.ids[number]));
    if (value !== null) head.append(" ", element("span", { class: "muted" }, value.toFixed(3)));
    if (relevance) head.append(" ", element("span", { class: "tag judged" }, relevance === 1 ? "judged relevant" : `judged relevant (${relevance})`));
    const body = element("div", {}, head, element("p", {}, documents.texts[number] || "(text not in the run folder)"));
    list.append(element("li", relevance ? { class: "judged" } : {}, body));
  });
  return side.top[i].length ? list : element("p", { class: "muted" }, "No ranking in the run folder.");
}

function ranks(pair, i) {
  return pair.judged[i].map(([number]) => {
    const at = (side) => (side ? side.top[i].indexOf(number) + 1 : 0);
    const say = (rank) => (rank ? `rank ${rank}` : "not shown");
    const parts = [pair.direct ? say(at(pair.direct)) : null, pair.reason ? say(at(pair.reason)) : null].filter(Boolean);
    return `${documents.ids[number]}: ${parts.join(" → ")}`;
  });
}

const heading = (text) => (text.endsWith(" reasoning") ? text[0].toUpperCase() + text.slice(1) : text);

function show(i, focus) {
  const pair = explorer.pair, delta = explorer.delta[i];
  explorer.current = i;
  for (const button of $("hits").querySelectorAll("button[data-query]")) {
    if (Number(button.dataset.query) === i) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  const scores = element("p", {}, "nDCG@10 ");
  if (pair.direct) scores.append(`${pair.names[0]} ${score(pair.direct.ndcg[i])}`);
  if (pair.direct && pair.reason) scores.append(", ");
  if (pair.reason) scores.append(`${pair.names[1]} ${score(pair.reason.ndcg[i])}`);
  if (delta !== null) scores.append(" ", element("span", { class: `delta ${verdict(delta)}` }, `(${verdict(delta)}, ${signed(delta)})`));
  const facts = element("p", { class: "muted" }, `Query ${pair.ids[i]}`);
  if (pair.hops && pair.hops[i] !== null) facts.append(` · ${pair.hops[i]} hop${pair.hops[i] === 1 ? "" : "s"}`);
  const seeds = pair.seeds.reason ?? [];
  if (seeds.length > 1) facts.append(` · scores are means of ${seeds.length} seeds; reasoning and rankings are those of seed ${seeds[0]}`);
  const judged = new Map(pair.judged[i]);
  const lines = ranks(pair, i);
  if (lines.length) facts.append(element("br"), `Judged relevant: ${lines.join("; ")}`);
  const detail = $("detail");
  detail.replaceChildren(element("h3", {}, pair.texts[i] || `Query ${pair.ids[i]}`), scores, facts);
  if (pair.reason?.reasoning) {
    const head = element("h4", {}, "Reasoning ");
    if (pair.reason.tokens[i] !== null) head.append(element("span", { class: "tag" }, `${pair.reason.tokens[i]} tokens`));
    if (pair.reason.forced[i]) head.append(" ", element("span", { class: "tag forced" }, pair.writes ? "cut: budget spent" : "forced: budget spent"));
    detail.append(head, element("div", { class: "thought" }, pair.reason.reasoning[i] || "(empty)"));
  }
  const sides = element("div", { class: "sides" });
  if (pair.direct) sides.append(element("div", {}, element("h4", {}, heading(pair.names[0])), ranking(pair.direct, i, judged)));
  if (pair.reason) sides.append(element("div", {}, element("h4", {}, pair.direct ? heading(pair.names[1]) : "Top documents"), ranking(pair.reason, i, judged)));
  detail.append(sides);
  if (!focus) return;
  detail.focus({ preventScroll: true });
  const box = detail.getBoundingClientRect();
  if (box.top < 0 || box.top > innerHeight * 0.6) detail.scrollIntoView({ block: "start" });
}

function wireExplorer() {
  if (!pairs.length) return;
  for (const choice of document.querySelectorAll("select.pair")) {
    choice.addEventListener("change", () => choosePair(Number(choice.value)));
  }
  $("search").addEventListener("input", search);
  $("order").addEventListener("change", search);
  $("filter").addEventListener("change", search);
  choosePair(0);
}

// ---------------------------------------------------------------- start

async function start() {
  wireTables();
  if (typeof DecompressionStream === "undefined") {
    throw new Error("this browser is too old to unpack the figures (it needs DecompressionStream: 2023 or later)");
  }
  ({ figures, pairs, documents } = JSON.parse(await unpack("data")));
  wireExplorer();
  const script = element("script");
  script.textContent = await unpack("plotly");
  document.head.append(script);
  wireTheme();
  watchFigures();
  if (pairs.length) choosePair(explorer.number);
  document.documentElement.dataset.ready = "yes";
}

start().catch((problem) => {
  $("problem").hidden = false;
  $("problem").textContent = `Figures and explorer cannot be shown: ${problem.message}. The tables are complete.`;
  throw problem;
});
