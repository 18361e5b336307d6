// The traffic matrix. Python sends one list of Gumbel numbers; everything else is computed here,
// so the page answers without a kernel. Five numbers travel either way: tokens, skew, visit,
// capacity, spare.

const MOST_TOKENS = 64, MOST_SPARE = 4; // as in traffic_matrix.py

/** The ranks that hold a copy of each expert: replicas and place of moe_lite/course/placement.py. */
function held(load, spare, R) {
  const copies = load.map(() => 1);
  for (let n = 0; n < spare * R; n++) {
    const share = load.map((l, e) => l / copies[e]);
    copies[share.indexOf(Math.max(...share))]++;
  }
  const room = range(R).map(() => load.length / R + spare), work = range(R).map(() => 0), ranks = load.map(() => []);
  const all = load.flatMap((l, e) => range(copies[e]).map(() => [e, l / copies[e]]));
  for (const [e, share] of all.sort((a, b) => b[1] - a[1])) {
    const free = range(R).filter((r) => room[r]);
    const rank = free.reduce((x, r) => (work[r] < work[x] ? r : x), free[0]);
    room[rank]--;
    work[rank] += share;
    ranks[e].push(rank);
  }
  return ranks;
}

/** Routes every token, lets full experts refuse, and counts pairs and copies from rank to rank. */
function route({ ranks: R, experts: E, k: K, gumbel, tokens, skew, visit, capacity, spare }) {
  const local = E / R, T = R * tokens, zeros = () => range(R).map(() => new Array(R).fill(0));
  const room = capacity > 0 ? Math.max(1, Math.floor((capacity * T * K) / E)) : Infinity;
  const pairs = zeros(), copies = zeros(), load = new Array(E).fill(0);
  const kept = []; // [sender, token, expert]
  let dropped = 0;
  for (let t = 0; t < T; t++) {
    const from = Math.floor(t / tokens);
    const score = load.map((_, e) => Math.exp(gumbel[t * E + e] - skew * Math.log(e + 1)));
    const worth = pairs.map((_, r) => {
      const own = score.slice(r * local, (r + 1) * local).sort((a, b) => b - a);
      return sum(own.slice(0, Math.min(local, Math.ceil(K / visit))));
    });
    const allowed = new Set(best(worth, visit));
    for (const e of best(score.map((s, e) => (allowed.has(Math.floor(e / local)) ? s : -1)), K)) {
      if (++load[e] > room) dropped++;
      else kept.push([from, t, e]);
    }
  }
  const lies = spare ? held(load.map((n) => Math.min(n, room)), spare, R) : load.map((_, e) => [Math.floor(e / local)]);
  const turns = load.map(() => 0), seen = new Set();
  for (const [from, t, e] of kept) {
    const to = lies[e][turns[e]++ % lies[e].length];
    pairs[from][to]++;
    if (!seen.has(t * R + to)) { seen.add(t * R + to); copies[from][to]++; }
  }
  return { pairs, copies, dropped };
}

const away = (matrix) => sum(matrix.map((row, r) => sum(row) - row[r]));

function render({ model, el }) {
  const { get, slider, show } = tie(model), R = get("ranks"), E = get("experts"), K = get("k");

  // --- controls
  const controls = h("div.controls", {},
    slider("tokens", "Tokens per rank", { min: 1, max: MOST_TOKENS }),
    slider("skew", "Skew", { min: 0, max: 2, step: 0.1 }, (v) => v.toFixed(1)),
    slider("visit", "Ranks a token may visit", { min: Math.ceil((K * R) / E), max: R }),
    slider("capacity", "Capacity factor", { min: 0, max: 4, step: 0.25 }, (v) => (v > 0 ? v.toFixed(2) : "none")),
    slider("spare", "Spare experts per rank", { min: 0, max: MOST_SPARE }));

  // --- the matrix
  const cells = range(R).map((from) => range(R).map((to) => h(from === to ? "td.own" : "td")));
  const work = range(R).map(() => h("td"));
  const body = h("tbody", {}, ...cells.map((row, from) => h("tr", {}, h("th", { scope: "row" }, `from ${from}`), ...row)));
  const foot = h("tr", {}, h("th", { scope: "row" }, "work"), ...work);
  const heads = work.map((_, to) => h("th", { scope: "col" }, `to ${to}`));
  const table = h("table", {}, h("caption", {}, "Pairs from rank to rank"),
    h("thead", {}, h("tr", {}, h("td"), ...heads)), body, h("tfoot", {}, foot));
  const said = h("p.said", { role: "status" });
  const root = h("div.traffic-matrix", {}, controls,
    h("div.scroll", { tabIndex: 0, role: "region", "aria-label": "Traffic matrix" }, table),
    h("p.quiet", {}, `${E} experts, ${E / R} on each rank, ${K} per token. Dashed: what stays at home. The more, the deeper the colour. Work: the pairs that a rank has to compute.`),
    said);

  // --- painting
  const keys = ["ranks", "experts", "k", "gumbel", "tokens", "skew", "visit", "capacity", "spare"];
  function paint() {
    const { pairs, copies, dropped } = route(Object.fromEntries(keys.map((key) => [key, get(key)])));
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

  return show(el, root, ["tokens", "skew", "visit", "capacity", "spare"], paint);
}

export default { render };
