// The traffic matrix. Python sends one list of Gumbel numbers; everything else is computed here,
// so the page answers without a kernel. Four numbers travel either way: tokens, skew, visit,
// capacity.

const MOST_TOKENS = 64; // as in traffic_matrix.py

function h(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(props)) {
    if (key in element && !key.startsWith("aria")) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** The n best places of a list, the first of equals first. */
const best = (xs, n) => xs.map((_, i) => i).sort((a, b) => xs[b] - xs[a] || a - b).slice(0, n);

/** Routes every token, lets full experts refuse, and counts pairs and copies from rank to rank. */
function route({ ranks: R, experts: E, k: K, gumbel, tokens, skew, visit, capacity }) {
  const local = E / R, T = R * tokens, zeros = () => Array.from({ length: R }, () => new Array(R).fill(0));
  const room = capacity > 0 ? Math.max(1, Math.floor((capacity * T * K) / E)) : Infinity;
  const pairs = zeros(), copies = zeros(), load = new Array(E).fill(0);
  let dropped = 0;
  for (let t = 0; t < T; t++) {
    const from = Math.floor(t / tokens), seen = new Set();
    const score = load.map((_, e) => Math.exp(gumbel[t * E + e] - skew * Math.log(e + 1)));
    const worth = pairs.map((_, r) => {
      const own = score.slice(r * local, (r + 1) * local).sort((a, b) => b - a);
      return own.slice(0, Math.min(local, Math.ceil(K / visit))).reduce((a, b) => a + b, 0);
    });
    const allowed = new Set(best(worth, visit));
    for (const e of best(score.map((s, e) => (allowed.has(Math.floor(e / local)) ? s : -1)), K)) {
      if (++load[e] > room) { dropped++; continue; }
      const to = Math.floor(e / local);
      pairs[from][to]++;
      if (!seen.has(to)) { seen.add(to); copies[from][to]++; }
    }
  }
  return { pairs, copies, dropped };
}

const sum = (xs) => xs.reduce((a, b) => a + b, 0);
const away = (matrix) => sum(matrix.map((row, r) => sum(row) - row[r]));

function render({ model, el }) {
  const R = model.get("ranks"), E = model.get("experts"), K = model.get("k"), stop = new AbortController();
  const set = (key, value) => { model.set(key, value); model.save_changes(); };

  // --- controls
  const sliders = {};
  const slider = (key, label, props, show) => {
    const input = h("input", { type: "range", ...props, "aria-label": label }), output = h("output");
    input.addEventListener("input", () => set(key, Number(input.value)), { signal: stop.signal });
    sliders[key] = { input, output, show };
    return h("label", {}, h("span", {}, label), input, output);
  };
  const controls = h("div.controls", {},
    slider("tokens", "Tokens per rank", { min: 1, max: MOST_TOKENS, step: 1 }, String),
    slider("skew", "Skew", { min: 0, max: 2, step: 0.1 }, (v) => v.toFixed(1)),
    slider("visit", "Ranks a token may visit", { min: Math.ceil((K * R) / E), max: R, step: 1 }, String),
    slider("capacity", "Capacity factor", { min: 0, max: 4, step: 0.25 }, (v) => (v > 0 ? v.toFixed(2) : "none")));

  // --- the matrix
  const cells = [], work = [];
  const body = h("tbody");
  for (let from = 0; from < R; from++) {
    const row = h("tr", {}, h("th", { scope: "row" }, `from ${from}`));
    cells.push([]);
    for (let to = 0; to < R; to++) {
      const cell = h(from === to ? "td.own" : "td");
      cells[from].push(cell);
      row.append(cell);
    }
    body.append(row);
  }
  const foot = h("tr", {}, h("th", { scope: "row" }, "work"));
  for (let to = 0; to < R; to++) { work.push(h("td")); foot.append(work[to]); }
  const heads = work.map((_, to) => h("th", { scope: "col" }, `to ${to}`));
  const table = h("table", {}, h("caption", {}, "Pairs from rank to rank"),
    h("thead", {}, h("tr", {}, h("td"), ...heads)), body, h("tfoot", {}, foot));
  const said = h("p.said", { role: "status" });
  const root = h("div.traffic-matrix", {}, controls,
    h("div.scroll", { tabIndex: 0, role: "region", "aria-label": "Traffic matrix" }, table),
    h("p.quiet", {}, `${E} experts, ${E / R} on each rank, ${K} per token. Dashed: what stays at home. The more, the deeper the colour. Work: the pairs that a rank has to compute.`),
    said);
  el.append(root);

  // --- painting
  const keys = ["ranks", "experts", "k", "gumbel", "tokens", "skew", "visit", "capacity"];
  function paint() {
    for (const [key, { input, output, show }] of Object.entries(sliders)) {
      const value = model.get(key);
      if (Number(input.value) !== value) input.value = value;
      output.textContent = show(value);
      input.setAttribute("aria-valuetext", show(value));
    }
    const { pairs, copies, dropped } = route(Object.fromEntries(keys.map((key) => [key, model.get(key)])));
    const most = Math.max(1, ...pairs.flat()), totals = work.map((_, to) => sum(pairs.map((row) => row[to])));
    cells.forEach((row, from) => row.forEach((cell, to) => {
      cell.textContent = pairs[from][to];
      cell.style.setProperty("--share", `${(40 * pairs[from][to]) / most}%`);
    }));
    work.forEach((cell, to) => { cell.textContent = totals[to]; });
    const all = sum(totals);
    said.textContent = `Busiest rank over mean ${((Math.max(...totals) * R) / all).toFixed(2)}; ` +
      `${away(pairs)} of ${all} pairs leave their rank, as ${away(copies)} copies if a token travels once to a rank; ${dropped} dropped.`;
  }
  let frame = 0;
  const soon = () => { frame ||= requestAnimationFrame(() => { frame = 0; paint(); }); };
  const watched = ["tokens", "skew", "visit", "capacity"].map((key) => `change:${key}`);
  for (const event of watched) model.on(event, soon);
  // Keys pressed here are not for the notebook around it; Shift+Enter still runs the cell.
  root.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey && !event.altKey && !(event.key === "Enter" && event.shiftKey)) event.stopPropagation();
  }, { signal: stop.signal });
  paint();

  return () => {
    stop.abort();
    cancelAnimationFrame(frame);
    for (const event of watched) model.off(event, soon);
    root.remove();
  };
}

export default { render };
