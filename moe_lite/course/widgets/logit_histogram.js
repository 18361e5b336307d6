// The logit histogram. Python sends the logits; rounding, choosing and counting are done here, so
// the page answers without a kernel. Four things travel either way: precision, doublings, shift,
// token.

const MOST_DOUBLINGS = 8, MOST_SHIFT = 256, BINS = 96; // as in logit_histogram.py

const float = new Float32Array(1), bits = new Uint32Array(float.buffer);

/** Rounds a float32 to the nearest bfloat16, a tie to the even one: its upper 16 bits. */
function bfloat16(x) {
  float[0] = x;
  bits[0] = (bits[0] + 0x7fff + ((bits[0] >>> 16) & 1)) & 0xffff0000;
  return float[0];
}

/** The step from one bfloat16 number to the next: 7 bits after the leading one. */
const spacing = (x) => (x ? 2 ** (Math.floor(Math.log2(Math.abs(x))) - 7) : 0);

function counts(rows, low, width) {
  const found = new Array(BINS).fill(0);
  for (const row of rows) for (const x of row) found[clamp(Math.floor((x - low) / width), 0, BINS - 1)]++;
  return found;
}

const short = (x) => String(Number(x.toPrecision(4)));
const set2 = (experts) => [...experts].sort((a, b) => a - b).join("+");

function render({ model, el }) {
  const { get, set, on, slider, radios, show } = tie(model);
  const logits = get("logits"), names = get("tokens"), colors = get("colors"), k = get("k"), T = logits.length;

  // --- controls
  const controls = h("div.controls", {},
    radios("precision", "Logits in", ["float32", "bfloat16"].map((value) => [value, value])),
    slider("doublings", "Double all", { min: 0, max: MOST_DOUBLINGS }, (v) => `×${2 ** v}`),
    slider("shift", "Add to all", { min: 0, max: MOST_SHIFT }, (v) => `+${short(v)}`));

  // --- the histogram
  const bars = ["exact", "rounded"].flatMap((name) => range(BINS).map((i) =>
    h(`rect.${name}`, name === "exact" ? { x: i, width: 1 } : { x: i + 0.2, width: 0.6 })));
  const plot = h("svg", { viewBox: `0 0 ${BINS} 40`, preserveAspectRatio: "none", role: "img" }, ...bars);
  const ends = [h("span"), h("span")], step = h("i"), said = h("p.said", { role: "status" });
  const histogram = h("section", {},
    h("h2", {}, "All logits"),
    h("p.quiet", {}, "Grey: in float32. Coloured: what bfloat16 makes of them; where its numbers lie further apart than the bars, a comb. The bracket is one step of bfloat16 at the largest logit."),
    plot, h("div.axis", {}, ends[0], ends[1]), h("div.ruler", {}, step), said);

  // --- tokens
  const options = names.map((name, n) => {
    const way = h("b"), option = h("li", { role: "option", tabIndex: -1 }, h("span", {}, name || "∅"), way);
    on(option, "click", () => choose(n));
    return { option, way };
  });
  const list = h("ul.tokens", { role: "listbox", "aria-label": "Tokens with their experts" }, ...options.map((o) => o.option));
  const choose = (n) => { set({ token: n }); options[n].option.focus(); };
  on(list, "keydown", (event) => {
    const to = arrow(event, get("token"), T - 1);
    if (to !== undefined) choose(to);
  });
  const heading = h("h2");
  const lanes = colors.map((color, e) => {
    const exact = h("i.exact"), rounded = h("b.rounded", { style: `background: ${color}` }), value = h("span.value");
    return { exact, rounded, value, row: h("li.row", {}, chip(e), h("span.track", {}, exact, rounded), value) };
  });
  const contest = h("section", {},
    h("h2", {}, "Tokens and their experts"),
    h("p.quiet", {}, "An arrow and a thick frame: bfloat16 sends it elsewhere. Choose one to see its contest below. Ring: float32. Square: bfloat16."),
    list, heading, h("ul", {}, ...lanes.map((lane) => lane.row)));

  const root = h("div.logit-histogram", {}, controls, h("div.two", {}, histogram, contest));

  // --- painting
  function paint() {
    const rounds = get("precision") === "bfloat16", scale = 2 ** get("doublings"), shift = get("shift"), token = get("token");
    const exact = logits.map((row) => row.map((x) => Math.fround(x * scale + shift)));
    const rounded = exact.map((row) => row.map(bfloat16));
    const flat = exact.flat(), low = flat.reduce((a, x) => Math.min(a, x)), high = flat.reduce((a, x) => Math.max(a, x));
    const pace = spacing(Math.max(Math.abs(low), Math.abs(high)));

    const pad = ((high - low) || 1) * 0.02 + (rounds ? pace : 0), width = (high - low + 2 * pad) / BINS;
    const heights = [counts(exact, low - pad, width), rounds ? counts(rounded, low - pad, width) : new Array(BINS).fill(0)];
    const most = Math.max(...heights[0], ...heights[1]);
    bars.forEach((bar, i) => {
      const height = (40 * heights[Math.floor(i / BINS)][i % BINS]) / most;
      attr(bar, { height, y: 40 - height });
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
      error = Math.max(error, Math.abs(softmax(row)[e] - softmax(rounded[n])[e]));
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

  return show(el, root, ["precision", "doublings", "shift", "token"], paint);
}

export default { render };
