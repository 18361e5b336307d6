// The noisy gate. Python sends the clean scores and one list of normal numbers; everything else is
// computed here, so the page answers without a kernel. Four numbers travel either way: k, noise,
// token, draw.

const MOST_NOISE = 3, STRIDE = 131; // as in noisy_gate.py

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

/** The normal distribution function (Abramowitz and Stegun 7.1.26, error below 2e-7). */
function phi(z) {
  const x = Math.abs(z) / Math.SQRT2, s = 1 / (1 + 0.3275911 * x);
  const tail = s * (0.254829592 + s * (-0.284496736 + s * (1.421413741 + s * (-1.453152027 + s * 1.061405429)))) * Math.exp(-x * x) / 2;
  return z > 0 ? 1 - tail : tail;
}

const cv = (xs) => {
  const mean = xs.reduce((a, b) => a + b, 0) / xs.length;
  return Math.sqrt(xs.reduce((a, x) => a + (x - mean) ** 2, 0) / xs.length) / mean;
};

/** Routes every token: scores with noise, who is chosen, the bar, the probability to clear it. */
function route(clean, normal, k, noise, draw) {
  const E = clean[0].length, N = normal.length;
  const came = new Array(E).fill(0), smooth = new Array(E).fill(0);
  const tokens = clean.map((row, t) => {
    const noisy = row.map((x, e) => x + noise * normal[(t * E + e + draw * STRIDE) % N]);
    const order = noisy.map((_, e) => e).sort((a, b) => noisy[b] - noisy[a] || a - b);
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
  const clean = model.get("clean"), normal = model.get("normal"), colors = model.get("colors");
  const T = clean.length, E = clean[0].length, stop = new AbortController();
  const set = (key, value) => { model.set(key, value); model.save_changes(); };

  // --- controls
  const sliders = {};
  const slider = (key, label, props, show) => {
    const input = h("input", { type: "range", ...props, "aria-label": label }), output = h("output");
    input.addEventListener("input", () => set(key, Number(input.value)), { signal: stop.signal });
    sliders[key] = { input, output, show };
    return h("label", {}, h("span", {}, label), input, output);
  };
  const again = h("button", { type: "button" }, "Draw again");
  again.addEventListener("click", () => set("draw", (model.get("draw") + 1) % 1000), { signal: stop.signal });
  const controls = h("div.controls", {},
    slider("noise", "Noise", { min: 0, max: MOST_NOISE, step: 0.05 }, (v) => v.toFixed(2)),
    slider("k", "Experts per token, k", { min: 1, max: E, step: 1 }, String),
    again);

  // --- load
  const said = h("p.said", { role: "status" });
  const rows = colors.map((color, e) => {
    const fill = h("i"), mark = h("b"), value = h("span.value");
    fill.style.background = color;
    const chip = h("span.chip", {}, h("span.unseen", {}, "expert "), String(e));
    return { fill, mark, value, row: h("li.row", {}, chip, h("span.track", {}, fill, h("u"), mark), value) };
  });
  const loads = h("section", {},
    h("h2", {}, "Load of each expert"),
    h("p.quiet", {}, "Bar: tokens that came. Diamond: the smooth load, the sum of the probabilities. Dashed line: an equal share."),
    h("ul", {}, ...rows.map((r) => r.row)), said);

  // --- one token
  const heading = h("h2");
  const lanes = colors.map((color, e) => {
    const clean = h("i.clean"), noisy = h("b.noisy"), way = h("s"), bar = h("u"), value = h("span.value");
    noisy.style.background = color;
    const chip = h("span.chip", {}, h("span.unseen", {}, "expert "), String(e));
    return { clean, noisy, way, bar, value, row: h("li.row", {}, chip, h("span.track.lane", {}, way, bar, clean, noisy), value) };
  });
  const contest = h("section", {},
    heading,
    h("p.quiet", {}, "Ring: clean score. Dot: with noise; a square one is chosen. Upright line: the bar that this expert has to clear. P: how probably a new draw of its own noise clears it."),
    h("div.controls", {}, slider("token", "Token", { min: 0, max: T - 1, step: 1 }, String)),
    h("ul", {}, ...lanes.map((r) => r.row)));

  const root = h("div.noisy-gate", {}, controls, h("div.two", {}, loads, contest));
  el.append(root);

  // --- painting
  const flat = clean.flat(), low = Math.min(...flat), high = Math.max(...flat);
  function paint() {
    const k = model.get("k"), noise = model.get("noise"), token = model.get("token");
    for (const [key, { input, output, show }] of Object.entries(sliders)) {
      const value = model.get(key);
      if (Number(input.value) !== value) input.value = value;
      output.textContent = show(value);
      input.setAttribute("aria-valuetext", show(value));
    }
    const { tokens, came, smooth } = route(clean, normal, k, noise, model.get("draw"));
    const most = Math.max((1.6 * T * k) / E, ...came, ...smooth) || 1;
    rows.forEach(({ fill, mark, value, row }, e) => {
      fill.style.width = `${(100 * came[e]) / most}%`;
      mark.style.left = `${(100 * smooth[e]) / most}%`;
      row.querySelector("u").style.left = `${(100 * T * k) / E / most}%`;
      value.textContent = `${came[e]} (${smooth[e].toFixed(1)})`;
    });
    const idle = came.filter((n) => n === 0).length;
    said.textContent = `CV of the load ${cv(came).toFixed(2)}, of the smooth load ${cv(smooth).toFixed(2)}; ` +
      `busiest over mean ${(Math.max(...came) * E / (T * k)).toFixed(2)}; ${idle} ${idle === 1 ? "expert" : "experts"} without a token.`;

    const one = tokens[token], reach = 2.2 * noise + 0.3;
    const at = (x) => `${Math.min(100, Math.max(0, (100 * (x - low + reach)) / (high - low + 2 * reach)))}%`;
    const names = one.chosen.flatMap((yes, e) => (yes ? [e] : []));
    heading.textContent = `Token ${token} goes to expert${k > 1 ? "s" : ""} ${names.join(", ")}`;
    lanes.forEach(({ clean: ring, noisy, way, bar, value }, e) => {
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
  let frame = 0;
  const soon = () => { frame ||= requestAnimationFrame(() => { frame = 0; paint(); }); };
  const watched = ["k", "noise", "token", "draw"].map((key) => `change:${key}`);
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
