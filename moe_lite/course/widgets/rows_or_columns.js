// Rows or columns. Python sends the scores; the softmax, the choices and what the cut-off text
// changes are computed here, so the page answers without a kernel. Scores, by, c and seen travel
// either way.

const STEP = 0.5, FAR = 20; // FAR as in rows_or_columns.py

/** Says for every cell of the first `seen` rows whether it is chosen. */
function route(scores, by, c, seen) {
  const probs = scores.slice(0, seen).map(softmax), E = scores[0].length;
  const chosen = probs.map((row) => row.map(() => false));
  // Rounded before they are ranked: two machines may differ in the last digit.
  const highest = (values) => best(values.map((x) => Math.round(x * 1e9)), k);
  const k = by === "row" ? c : Math.min(seen, Math.ceil((c * seen) / E));
  if (by === "row") probs.forEach((row, n) => highest(row).forEach((e) => { chosen[n][e] = true; }));
  else for (let e = 0; e < E; e++) highest(probs.map((row) => row[e])).forEach((n) => { chosen[n][e] = true; });
  return { probs, chosen, k };
}

/** Pairs what loses its place with what takes it, along each row or down each column. */
function displaced(before, after, by) {
  const lines = range(by === "row" ? after.length : after[0].length), place = (a, b) => (by === "row" ? [a, b] : [b, a]);
  return lines.flatMap((a) => {
    const spots = range(by === "row" ? after[0].length : after.length).map((b) => place(a, b));
    const [lost, won] = [[before, after], [after, before]].map(([has, lacks]) => spots.filter(([n, e]) => has[n]?.[e] && !lacks[n]?.[e]));
    return lost.slice(0, won.length).map((from, i) => [from, won[i]]);
  });
}

const visible = (token) => token.replace(/\n/g, "↵").replace(/^ | $/g, "␣");

function render({ model, el }) {
  const { get, set, on, atEnd, slider, menu, show } = tie(model);
  const tokens = get("tokens"), colors = get("colors"), T = tokens.length, E = colors.length;

  // --- controls
  const lower = h("input", { type: "checkbox" });
  const controls = h("div.controls", {},
    menu("by", "Who chooses?", [["row", "tokens, along the rows"], ["column", "experts, down the columns"]]),
    slider("c", "Experts per token, c", { min: 1, max: E }),
    slider("seen", "Tokens seen", { min: 1, max: T }, (v) => (v === T ? "all" : `${v} of ${T}`)),
    h("label", {}, lower, h("span", {}, "a click lowers")));

  // --- the matrix: one cell is in the tab order, arrows move it
  let at = [0, 0];
  const cells = tokens.map((token, n) => colors.map((color, e) => {
    const value = h("span.value"), mark = h("span.mark", { "aria-hidden": "true" });
    const cell = h("td", { role: "gridcell", tabIndex: n + e ? -1 : 0 }, value, mark);
    cell.style.setProperty("--expert", color);
    on(cell, "click", (event) => { focus(n, e); nudge(n, e, (event.shiftKey || lower.checked) ? -STEP : STEP); });
    on(cell, "focus", () => hold(n, e));
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
  const said = h("p.said", { role: "status" }), arrows = h("svg", { "aria-hidden": "true" });
  const root = h("div.rows-or-columns", {}, controls, h("div.scroll", {}, table, arrows), said,
    h("p.quiet", {}, "A number is the token's softmax over the experts; ● is chosen. Click a cell to raise its score, with Shift to lower it; " +
      "by keyboard, arrows move, + and − change. An arrow leads from what loses its place to what takes it. With tokens hidden, + ● is chosen only while they are, − will be chosen only once they are there."));

  function hold(n, e) {
    cells[at[0]][at[1]].cell.tabIndex = -1;
    at = [n, e];
    cells[n][e].cell.tabIndex = 0;
  }
  function focus(n, e) { hold(n, e); cells[n][e].cell.focus(); }
  function nudge(n, e, by) {
    const scores = get("scores").map((row) => row.slice());
    scores[n][e] = clamp(Math.round((scores[n][e] + by) * 100) / 100, -FAR, FAR);
    set({ scores });
  }
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  on(table, "keydown", (event) => {
    const [n, e] = at, move = moves[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (move) focus(clamp(n + move[0], 0, T - 1), clamp(e + move[1], 0, E - 1));
    else if (event.key === "Home") focus(n, 0);
    else if (event.key === "End") focus(n, E - 1);
    else if ("+= ".includes(event.key) || (event.key === "Enter" && !event.shiftKey)) nudge(n, e, STEP);
    else if ("-_−".includes(event.key)) nudge(n, e, -STEP);
    else return;
    event.preventDefault();
  });

  // --- painting
  let last = {}, moved = []; // what was chosen before, and the pairs of the arrows
  function draw() {
    const middle = ([n, e]) => { const { offsetLeft: x, offsetTop: y, offsetWidth: w, offsetHeight: h_ } = cells[n][e].cell; return [table.offsetLeft + x + 0.6 * w, table.offsetTop + y + h_ / 2]; };
    const shots = moved.map(shot);
    arrows.replaceChildren(...shots.flatMap(({ shaft, head }) => [shaft, head]));
    shots.forEach((one, i) => point(one, ...moved[i].map(middle)));
  }
  const laid = new ResizeObserver(draw); // a host may lay the table out later, or anew
  laid.observe(table);
  atEnd(() => laid.disconnect());

  function paint() {
    const scores = get("scores"), by = get("by"), c = get("c"), seen = get("seen");
    const { probs, chosen, k } = route(scores, by, c, seen), whole = route(scores, by, c, T).chosen;
    const at = JSON.stringify([by, c, seen]);
    let changed = 0;
    if (seen < T) moved = displaced(chosen, whole, by);
    else if (last.scores !== scores || last.at !== at) moved = last.at === at ? displaced(last.chosen, chosen, by) : [];
    last = { scores, at, chosen };
    draw();
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
      (seen < T ? ` Of the choices among the ${many(seen, "token")} seen, ${changed} will be otherwise once the rest is there.`
        : moved.map(([[n, e], [m, f]]) => ` ${by === "row" ? `“${visible(tokens[n])}” leaves expert ${e} for ${f}` : `Expert ${e} leaves “${visible(tokens[n])}” for “${visible(tokens[m])}”`}.`).join(""));
  }

  return show(el, root, ["scores", "by", "c", "seen"], paint);
}

export default { render };
