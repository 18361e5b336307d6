// Rows or columns. Python sends the scores; the softmax, the choices and what the cut-off text
// changes are computed here, so the page answers without a kernel. Scores, by, c and seen travel
// either way.

const STEP = 0.5, FAR = 20; // FAR as in rows_or_columns.py

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

const softmax = (row) => {
  const most = Math.max(...row), exps = row.map((x) => Math.exp(x - most));
  const total = exps.reduce((a, b) => a + b, 0);
  return exps.map((x) => x / total);
};

/** Says for every cell of the first `seen` rows whether it is chosen. */
function route(scores, by, c, seen) {
  const probs = scores.slice(0, seen).map(softmax), E = scores[0].length;
  const chosen = probs.map((row) => row.map(() => false));
  // Rounded before they are ranked: two machines may differ in the last digit.
  const best = (values, k) => values.map((x, i) => [Math.round(x * 1e9), i])
    .sort((a, b) => b[0] - a[0] || a[1] - b[1]).slice(0, k).map(([, i]) => i);
  const k = by === "row" ? c : Math.min(seen, Math.ceil((c * seen) / E));
  if (by === "row") probs.forEach((row, n) => best(row, k).forEach((e) => { chosen[n][e] = true; }));
  else for (let e = 0; e < E; e++) best(probs.map((row) => row[e]), k).forEach((n) => { chosen[n][e] = true; });
  return { probs, chosen, k };
}

const many = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;
const visible = (token) => token.replace(/\n/g, "↵").replace(/^ | $/g, "␣");

function render({ model, el }) {
  const tokens = model.get("tokens"), colors = model.get("colors");
  const T = tokens.length, E = colors.length, stop = new AbortController(), on = { signal: stop.signal };
  const set = (key, value) => { model.set(key, value); model.save_changes(); };

  // --- controls
  const name = `by-${Math.random().toString(36).slice(2)}`;
  const radios = Object.entries({ row: "tokens, along the rows", column: "experts, down the columns" }).map(([value, label]) => {
    const input = h("input", { type: "radio", name, value });
    input.addEventListener("change", () => set("by", value), on);
    return { input, label: h("label", {}, input, h("span", {}, label)) };
  });
  const sliders = {};
  const slider = (key, label, max, show) => {
    const input = h("input", { type: "range", min: 1, max, step: 1, "aria-label": label }), output = h("output");
    input.addEventListener("input", () => set(key, Number(input.value)), on);
    sliders[key] = { input, output, show };
    return h("label", {}, h("span", {}, label), input, output);
  };
  const lower = h("input", { type: "checkbox" });
  const controls = h("div.controls", {},
    h("fieldset", {}, h("legend", {}, "Who chooses?"), ...radios.map((r) => r.label)),
    slider("c", "Experts per token, c", E, String),
    slider("seen", "Tokens seen", T, (v) => (v === T ? "all" : `${v} of ${T}`)),
    h("label", {}, lower, h("span", {}, "a click lowers")));

  // --- the matrix: one cell is in the tab order, arrows move it
  let at = [0, 0];
  const cells = tokens.map((token, n) => colors.map((color, e) => {
    const value = h("span.value"), mark = h("span.mark", { "aria-hidden": "true" });
    const cell = h("td", { role: "gridcell", tabIndex: n + e ? -1 : 0 }, value, mark);
    cell.style.setProperty("--expert", color);
    cell.addEventListener("click", (event) => { focus(n, e); nudge(n, e, (event.shiftKey || lower.checked) ? -STEP : STEP); }, on);
    cell.addEventListener("focus", () => hold(n, e), on);
    return { cell, value, mark };
  }));
  const names = tokens.map((token) => h("th", { scope: "row" }, visible(token)));
  const perToken = tokens.map(() => h("td.count"));
  const perExpert = colors.map(() => h("td.count"));
  const rows = tokens.map((_, n) => h("tr", {}, names[n], ...cells[n].map((c) => c.cell), perToken[n]));
  const table = h("table", { role: "grid", "aria-label": "Scores of the tokens (rows) for the experts (columns)" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "token"), ...colors.map((color, e) => {
      const head = h("th", { scope: "col" }, h("span.unseen", {}, "expert "), String(e));
      head.style.setProperty("--expert", color);
      return head;
    }), h("th", { scope: "col" }, "experts"))),
    h("tbody", {}, ...rows),
    h("tfoot", {}, h("tr", {}, h("th", { scope: "row" }, "tokens"), ...perExpert, h("td"))));
  const said = h("p.said", { role: "status" });
  const root = h("div.rows-or-columns", {}, controls, h("div.scroll", {}, table), said,
    h("p.quiet", {}, "A number is the token's softmax over the experts; ● is chosen. Click a cell to raise its score, with Shift to lower it; " +
      "by keyboard, arrows move, + and − change. With tokens hidden, + ● is chosen only while they are, − will be chosen only once they are there."));
  el.append(root);

  function hold(n, e) {
    cells[at[0]][at[1]].cell.tabIndex = -1;
    at = [n, e];
    cells[n][e].cell.tabIndex = 0;
  }
  function focus(n, e) { hold(n, e); cells[n][e].cell.focus(); }
  function nudge(n, e, by) {
    const scores = model.get("scores").map((row) => row.slice());
    scores[n][e] = Math.max(-FAR, Math.min(FAR, Math.round((scores[n][e] + by) * 100) / 100));
    set("scores", scores);
  }
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  table.addEventListener("keydown", (event) => {
    const [n, e] = at, move = moves[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (move) focus(Math.max(0, Math.min(T - 1, n + move[0])), Math.max(0, Math.min(E - 1, e + move[1])));
    else if (event.key === "Home") focus(n, 0);
    else if (event.key === "End") focus(n, E - 1);
    else if ("+= ".includes(event.key) || (event.key === "Enter" && !event.shiftKey)) nudge(n, e, STEP);
    else if ("-_−".includes(event.key)) nudge(n, e, -STEP);
    else return;
    event.preventDefault();
  }, on);

  // --- painting
  function paint() {
    const scores = model.get("scores"), by = model.get("by"), c = model.get("c"), seen = model.get("seen");
    for (const { input } of radios) input.checked = input.value === by;
    for (const [key, { input, output, show }] of Object.entries(sliders)) {
      const value = model.get(key);
      if (Number(input.value) !== value) input.value = value;
      output.textContent = show(value);
      input.setAttribute("aria-valuetext", show(value));
    }
    const { probs, chosen, k } = route(scores, by, c, seen), whole = route(scores, by, c, T).chosen;
    let changed = 0;
    cells.forEach((row, n) => {
      const hidden = n >= seen, count = hidden ? 0 : chosen[n].filter(Boolean).length;
      rows[n].classList.toggle("hidden-row", hidden);
      rows[n].classList.toggle("left-out", !hidden && !count);
      perToken[n].textContent = hidden ? "hidden" : count ? String(count) : "nobody";
      row.forEach(({ cell, value, mark }, e) => {
        const yes = !hidden && chosen[n][e], differs = !hidden && yes !== whole[n][e];
        changed += differs;
        value.textContent = hidden ? "" : probs[n][e].toFixed(2);
        mark.textContent = (differs ? (yes ? "+" : "−") : "") + (yes ? "●" : "");
        cell.classList.toggle("chosen", yes);
        cell.classList.toggle("differs", differs);
        cell.setAttribute("aria-selected", String(yes));
        cell.style.setProperty("--heat", hidden ? "0%" : `${Math.round(45 * probs[n][e])}%`);
        cell.setAttribute("aria-label", hidden ? "hidden" :
          `${probs[n][e].toFixed(2)}, ${yes ? "chosen" : "not chosen"}` +
          (differs ? `, ${yes ? "only while the later tokens are hidden" : "but chosen once the later tokens are there"}` : ""));
      });
    });
    const loads = colors.map((_, e) => chosen.filter((row) => row[e]).length);
    perExpert.forEach((cell, e) => { cell.textContent = String(loads[e]); });
    const left = chosen.filter((row) => !row.some(Boolean)).length;
    said.textContent = (by === "row" ? `Each token takes its best ${many(k, "expert")}.` : `Each expert takes its best ${many(k, "token")}.`) +
      ` ${loads.every((n) => n === loads[0]) ? `Every expert has ${loads[0]}` : `An expert has ${Math.min(...loads)} to ${Math.max(...loads)} tokens`}; ${many(left, "token")} chosen by nobody.` +
      (seen < T ? ` Of the choices among the ${many(seen, "token")} seen, ${changed} will be otherwise once the rest is there.` : "");
  }
  let frame = 0;
  const soon = () => { frame ||= requestAnimationFrame(() => { frame = 0; paint(); }); };
  const watched = ["scores", "by", "c", "seen"].map((key) => `change:${key}`);
  for (const event of watched) model.on(event, soon);
  // Keys pressed here are not for the notebook around it; Shift+Enter still runs the cell.
  root.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey && !event.altKey && !(event.key === "Enter" && event.shiftKey)) event.stopPropagation();
  }, on);
  paint();

  return () => {
    stop.abort();
    cancelAnimationFrame(frame);
    for (const event of watched) model.off(event, soon);
    root.remove();
  };
}

export default { render };
