// The noisy gate. Python sends the clean scores and one list of normal numbers; everything else is
// computed here, so the page answers without a kernel. Four numbers travel either way: k, noise,
// token, draw.

const MOST_NOISE = 3, STRIDE = 131; // as in noisy_gate.py

/** The normal distribution function (Abramowitz and Stegun 7.1.26, error below 2e-7). */
function phi(z) {
  const x = Math.abs(z) / Math.SQRT2, s = 1 / (1 + 0.3275911 * x);
  const tail = s * (0.254829592 + s * (-0.284496736 + s * (1.421413741 + s * (-1.453152027 + s * 1.061405429)))) * Math.exp(-x * x) / 2;
  return z > 0 ? 1 - tail : tail;
}

const cv = (xs) => {
  const mean = sum(xs) / xs.length;
  return Math.sqrt(sum(xs.map((x) => (x - mean) ** 2)) / xs.length) / mean;
};

/** Routes every token: scores with noise, who is chosen, the bar, the probability to clear it. */
function route(clean, normal, k, noise, draw) {
  const E = clean[0].length, N = normal.length;
  const came = new Array(E).fill(0), smooth = new Array(E).fill(0);
  const tokens = clean.map((row, t) => {
    const noisy = row.map((x, e) => x + noise * normal[(t * E + e + draw * STRIDE) % N]);
    const order = best(noisy, E);
    const chosen = new Array(E).fill(false);
    for (const e of order.slice(0, k)) { chosen[e] = true; came[e]++; }
    // The k-th highest of the others: for one that is in, the k+1-th of all; else the k-th.
    const bar = row.map((_, e) => (k === E ? -Infinity : noisy[order[chosen[e] ? k : k - 1]]));
    const prob = row.map((x, e) => (k === E ? 1 : noise > 0 ? phi((x - bar[e]) / noise) : +chosen[e]));
    prob.forEach((p, e) => { smooth[e] += p; });
    return { noisy, chosen, bar, prob };
  });
  return { tokens, came, smooth };
}

function render({ model, el }) {
  const { get, set, slider, button, show } = tie(model);
  const clean = get("clean"), normal = get("normal"), colors = get("colors"), T = clean.length, E = clean[0].length;

  // --- controls
  const controls = h("div.controls", {},
    slider("noise", "Noise", { min: 0, max: MOST_NOISE, step: 0.05 }, (v) => v.toFixed(2)),
    slider("k", "Experts per token, k", { min: 1, max: E }),
    button("Draw again", () => set({ draw: (get("draw") + 1) % 1000 })));

  // --- load
  const said = h("p.said", { role: "status" });
  const rows = colors.map((color, e) => {
    const fill = h("i", { style: `background: ${color}` }), mark = h("b"), equal = h("u"), value = h("span.value");
    return { fill, mark, equal, value, row: h("li.row", {}, chip(e), h("span.track", {}, fill, equal, mark), value) };
  });
  const loads = h("section", {},
    h("h2", {}, "Load of each expert"),
    h("p.quiet", {}, "Bar: tokens that came. Diamond: the smooth load, the sum of the probabilities. Dashed line: an equal share."),
    h("ul", {}, ...rows.map((r) => r.row)), said);

  // --- one token
  const heading = h("h2");
  const lanes = colors.map((color, e) => {
    const ring = h("i.clean"), noisy = h("b.noisy", { style: `background: ${color}` }), way = h("s"), bar = h("u"), value = h("span.value");
    return { ring, noisy, way, bar, value, row: h("li.row", {}, chip(e), h("span.track.lane", {}, way, bar, ring, noisy), value) };
  });
  const contest = h("section", {},
    heading,
    h("p.quiet", {}, "Ring: clean score. Dot: with noise; a square one is chosen. Upright line: the bar that this expert has to clear. P: how probably a new draw of its own noise clears it."),
    h("div.controls", {}, slider("token", "Token", { min: 0, max: T - 1 })),
    h("ul", {}, ...lanes.map((r) => r.row)));

  const root = h("div.noisy-gate", {}, controls, h("div.two", {}, loads, contest));

  // --- painting
  const flat = clean.flat(), low = Math.min(...flat), high = Math.max(...flat);
  function paint() {
    const k = get("k"), noise = get("noise"), token = get("token");
    const { tokens, came, smooth } = route(clean, normal, k, noise, get("draw"));
    const most = Math.max((1.6 * T * k) / E, ...came, ...smooth) || 1;
    rows.forEach(({ fill, mark, equal, value }, e) => {
      fill.style.width = `${(100 * came[e]) / most}%`;
      mark.style.left = `${(100 * smooth[e]) / most}%`;
      equal.style.left = `${(100 * T * k) / E / most}%`;
      value.textContent = `${came[e]} (${smooth[e].toFixed(1)})`;
    });
    const idle = many(came.filter((n) => n === 0).length, "expert");
    said.textContent = `CV of the load ${cv(came).toFixed(2)}, of the smooth load ${cv(smooth).toFixed(2)}; ` +
      `busiest over mean ${(Math.max(...came) * E / (T * k)).toFixed(2)}; ${idle} without a token.`;

    const one = tokens[token], reach = 2.2 * noise + 0.3;
    const at = (x) => `${clamp((100 * (x - low + reach)) / (high - low + 2 * reach), 0, 100)}%`;
    const names = one.chosen.flatMap((yes, e) => (yes ? [e] : []));
    heading.textContent = `Token ${token} goes to expert${k > 1 ? "s" : ""} ${names.join(", ")}`;
    lanes.forEach(({ ring, noisy, way, bar, value }, e) => {
      const from = clean[token][e], to = one.noisy[e];
      ring.style.left = at(from);
      noisy.style.left = at(to);
      noisy.classList.toggle("chosen", one.chosen[e]);
      way.style.left = at(Math.min(from, to));
      way.style.right = `calc(100% - ${at(Math.max(from, to))})`;
      bar.hidden = k === E;
      if (k < E) bar.style.left = at(one.bar[e]);
      value.textContent = `P ${one.prob[e].toFixed(2)}${one.chosen[e] ? " ✓" : ""}`;
    });
  }

  return show(el, root, ["k", "noise", "token", "draw"], paint);
}

export default { render };
