// The logit histogram. Python sends the logits; rounding, choosing and counting are done here, so
// the page answers without a kernel. Four things travel either way: precision, doublings, shift,
// token.

const MOST_DOUBLINGS = 8, MOST_SHIFT = 256, BINS = 96; // as in logit_histogram.py

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

const float = new Float32Array(1), bits = new Uint32Array(float.buffer);

/** Rounds a float32 to the nearest bfloat16, a tie to the even one: its upper 16 bits. */
function bfloat16(x) {
  float[0] = x;
  bits[0] = (bits[0] + 0x7fff + ((bits[0] >>> 16) & 1)) & 0xffff0000;
  return float[0];
}

/** The step from one bfloat16 number to the next: 7 bits after the leading one. */
const spacing = (x) => (x ? 2 ** (Math.floor(Math.log2(Math.abs(x))) - 7) : 0);

/** The k best experts, of equal logits the lower first. */
const best = (row, k) => row.map((_, e) => e).sort((a, b) => row[b] - row[a] || a - b).slice(0, k);

function share(row, e) {
  const top = Math.max(...row);
  return Math.exp(row[e] - top) / row.reduce((sum, x) => sum + Math.exp(x - top), 0);
}

function counts(rows, low, width) {
  const found = new Array(BINS).fill(0);
  for (const row of rows) for (const x of row) found[Math.min(BINS - 1, Math.max(0, Math.floor((x - low) / width)))]++;
  return found;
}

const short = (x) => String(Number(x.toPrecision(4)));
const set2 = (experts) => [...experts].sort((a, b) => a - b).join("+");

function render({ model, el }) {
  const logits = model.get("logits"), names = model.get("tokens"), colors = model.get("colors"), k = model.get("k");
  const T = logits.length, stop = new AbortController();
  const set = (key, value) => { model.set(key, value); model.save_changes(); };
  const on = (element, event, handler) => element.addEventListener(event, handler, { signal: stop.signal });

  // --- controls
  const sliders = {};
  const slider = (key, label, props, show) => {
    const input = h("input", { type: "range", ...props, "aria-label": label }), output = h("output");
    on(input, "input", () => set(key, Number(input.value)));
    sliders[key] = { input, output, show };
    return h("label", {}, h("span", {}, label), input, output);
  };
  const group = `precision-${Math.random().toString(36).slice(2)}`;
  const radios = ["float32", "bfloat16"].map((value) => {
    const input = h("input", { type: "radio", name: group, value });
    on(input, "change", () => set("precision", value));
    return { input, label: h("label", {}, input, value) };
  });
  const controls = h("div.controls", {},
    h("fieldset", {}, h("legend", {}, "Logits in"), ...radios.map((r) => r.label)),
    slider("doublings", "Double all", { min: 0, max: MOST_DOUBLINGS, step: 1 }, (v) => `×${2 ** v}`),
    slider("shift", "Add to all", { min: 0, max: MOST_SHIFT, step: 1 }, (v) => `+${short(v)}`));

  // --- the histogram
  const svg = (tag) => document.createElementNS("http://www.w3.org/2000/svg", tag);
  const plot = svg("svg"), bars = [];
  plot.setAttribute("viewBox", `0 0 ${BINS} 40`);
  plot.setAttribute("preserveAspectRatio", "none");
  plot.setAttribute("role", "img");
  for (const name of ["exact", "rounded"]) for (let i = 0; i < BINS; i++) {
    const bar = svg("rect");
    bar.setAttribute("class", name);
    bar.setAttribute("x", name === "exact" ? i : i + 0.2);
    bar.setAttribute("width", name === "exact" ? 1 : 0.6);
    plot.append(bar);
    bars.push(bar);
  }
  const ends = [h("span"), h("span")], step = h("i"), said = h("p.said", { role: "status" });
  const histogram = h("section", {},
    h("h2", {}, "All logits"),
    h("p.quiet", {}, "Grey: in float32. Coloured: what bfloat16 makes of them; where its numbers lie further apart than the bars, a comb. The bracket is one step of bfloat16 at the largest logit."),
    plot, h("div.axis", {}, ends[0], ends[1]), h("div.ruler", {}, step), said);

  // --- tokens
  const options = names.map((name, n) => {
    const way = h("b"), option = h("li", { role: "option", tabIndex: -1 }, h("span", {}, name || "∅"), way);
    on(option, "click", () => { set("token", n); option.focus(); });
    return { option, way };
  });
  const list = h("ul.tokens", { role: "listbox", "aria-label": "Tokens with their experts" }, ...options.map((o) => o.option));
  on(list, "keydown", (event) => {
    const now = model.get("token");
    const to = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1, Home: 0, End: T - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = Math.min(T - 1, Math.max(0, to));
    set("token", next);
    paint();
    options[next].option.focus();
  });
  const heading = h("h2");
  const lanes = colors.map((color, e) => {
    const exact = h("i.exact"), rounded = h("b.rounded"), value = h("span.value");
    rounded.style.background = color;
    const chip = h("span.chip", {}, h("span.unseen", {}, "expert "), String(e));
    return { exact, rounded, value, row: h("li.row", {}, chip, h("span.track", {}, exact, rounded), value) };
  });
  const contest = h("section", {},
    h("h2", {}, "Tokens and their experts"),
    h("p.quiet", {}, "An arrow and a thick frame: bfloat16 sends it elsewhere. Choose one to see its contest below. Ring: float32. Square: bfloat16."),
    list, heading, h("ul", {}, ...lanes.map((lane) => lane.row)));

  const root = h("div.logit-histogram", {}, controls, h("div.two", {}, histogram, contest));
  el.append(root);

  // --- painting
  function paint() {
    const precision = model.get("precision"), rounds = precision === "bfloat16";
    const scale = 2 ** model.get("doublings"), shift = model.get("shift"), token = model.get("token");
    for (const { input } of radios) input.checked = input.value === precision;
    for (const [key, { input, output, show }] of Object.entries(sliders)) {
      const value = model.get(key);
      if (Number(input.value) !== value) input.value = value;
      output.textContent = show(value);
      input.setAttribute("aria-valuetext", show(value));
    }
    const exact = logits.map((row) => row.map((x) => Math.fround(x * scale + shift)));
    const rounded = exact.map((row) => row.map(bfloat16));
    const flat = exact.flat(), low = flat.reduce((a, x) => Math.min(a, x)), high = flat.reduce((a, x) => Math.max(a, x));
    const pace = spacing(Math.max(Math.abs(low), Math.abs(high)));

    const pad = ((high - low) || 1) * 0.02 + (rounds ? pace : 0), width = (high - low + 2 * pad) / BINS;
    const heights = [counts(exact, low - pad, width), rounds ? counts(rounded, low - pad, width) : new Array(BINS).fill(0)];
    const most = Math.max(...heights[0], ...heights[1]);
    bars.forEach((bar, i) => {
      const height = (40 * heights[Math.floor(i / BINS)][i % BINS]) / most;
      bar.setAttribute("height", height);
      bar.setAttribute("y", 40 - height);
    });
    ends[0].textContent = short(low - pad);
    ends[1].textContent = short(high + pad);
    step.style.width = `${Math.min(100, (100 * pace) / (BINS * width))}%`;
    plot.setAttribute("aria-label", `Histogram of the logits, from ${short(low)} to ${short(high)}`);

    const ways = exact.map((row, n) => [best(row, k), best(rounded[n], k)]);
    const moved = ways.map(([before, after]) => set2(before) !== set2(after));
    let error = 0;
    exact.forEach((row, n) => {
      const e = ways[n][0][0];
      error = Math.max(error, Math.abs(share(row, e) - share(rounded[n], e)));
    });
    const number = moved.filter(Boolean).length;
    said.textContent = `Largest logit ${short(high)}; one step of bfloat16 there is ${short(pace)}. ` +
      `In bfloat16, ${number} of ${T} tokens change experts; a first choice's probability is off by up to ${error.toFixed(3)}.`;
    options.forEach(({ option, way }, n) => {
      const [before, after] = ways[n].map(set2), goes = rounds && moved[n];
      way.textContent = goes ? `${before}→${after}` : before;
      option.className = goes ? "moved" : "";
      option.setAttribute("aria-selected", n === token);
      option.setAttribute("aria-label", `token ${n}, ${names[n]}: expert ${before}${goes ? `, in bfloat16 ${after}` : ""}`);
      option.tabIndex = n === token ? 0 : -1;
    });

    const one = exact[token], other = rounded[token];
    const left = Math.min(...one, ...other), right = Math.max(...one, ...other);
    const at = (x) => `${4 + (92 * (x - left)) / ((right - left) || 1)}%`;
    const [before, after] = ways[token].map(set2);
    heading.textContent = `Token ${token} goes to expert ${rounds && moved[token] ? `${after} instead of ${before}` : before}`;
    lanes.forEach((lane, e) => {
      lane.exact.style.left = at(one[e]);
      lane.rounded.style.left = at(other[e]);
      lane.rounded.hidden = !rounds;
      const chosen = ways[token][rounds ? 1 : 0].includes(e);
      lane.value.textContent = rounds ? `${short(one[e])} → ${short(other[e])}${chosen ? " ✓" : ""}` : `${short(one[e])}${chosen ? " ✓" : ""}`;
    });
  }
  let frame = 0;
  const soon = () => { frame ||= requestAnimationFrame(() => { frame = 0; paint(); }); };
  const watched = ["precision", "doublings", "shift", "token"].map((key) => `change:${key}`);
  for (const event of watched) model.on(event, soon);
  // Keys pressed here are not for the notebook around it; Shift+Enter still runs the cell.
  on(root, "keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey && !event.altKey && !(event.key === "Enter" && event.shiftKey)) event.stopPropagation();
  });
  paint();

  return () => {
    stop.abort();
    cancelAnimationFrame(frame);
    for (const event of watched) model.off(event, soon);
    root.remove();
  };
}

export default { render };
