// The cost calculator. Python sends the presets and the devices; the counting is done here, as in
// moe_lite/cost.py, so the page answers without a kernel.

const SHAPE = ["width", "expert_width", "experts", "top_k", "layers"];

/** Parameters by part, and what one layer keeps of one token. */
function count(a) {
  const D = a.width, L = a.layers, M = Math.floor((L - a.dense_first) / a.every);
  const expert = a.matrices * D * a.expert_width, out = a.heads * a.head_dim;
  const attention = a.kv_rank
    ? (D + a.heads * (a.head_dim + a.rope_dim)) * a.q_rank + D * (a.kv_rank + a.rope_dim) + 2 * a.kv_rank * out + out * D
    : 2 * D * (out + a.kv_heads * a.head_dim);
  const experts = M * a.experts * expert, embedding = a.vocab * D;
  const norms = (2 * L + a.cross + 1 + (a.cross ? 1 : 0)) * D + L * (a.q_rank + a.kv_rank) + a.extra;
  const total = embedding * (a.tied ? 1 : 2) + (L + a.cross) * attention + M * a.experts * D + experts + norms +
    (L - M) * a.matrices * D * a.dense_width + M * a.shared * expert;
  const active = total - M * (a.experts - a.top_k) * expert;
  const cached = a.kv_rank ? a.kv_rank + a.rope_dim : 2 * a.kv_heads * a.head_dim;
  return { M, experts, embedding, total, active, cached };
}

/** One step of a phase: what each device does. */
function step(a, device, phase, batch, context, ranks, bytes, constants) {
  const c = count(a), train = phase === "train", decode = phase === "decode";
  const tokens = decode ? batch : batch * context, seen = decode ? context : context / 2;
  const common = c.total - c.experts - (a.tied ? 0 : c.embedding), own = c.experts / ranks;
  const touched = own * (1 - (1 - a.top_k / a.experts) ** tokens);
  const used = common + c.experts - (c.total - c.active);
  const scores = 2 * seen * a.heads * (2 * a.head_dim + a.rope_dim) * (a.layers + a.cross);
  const flops = ((2 * used + scores) * tokens) / ranks;
  const cache = (a.layers * batch * context * c.cached * 2) / ranks;
  const sent = (2 * c.M * (tokens / ranks) * a.top_k * a.width * 2 * (ranks - 1)) / ranks;
  const held = c.total - c.experts + own;
  const averaged = (4 * (c.total - c.experts) * (ranks - 1)) / ranks;
  const cost = train
    ? { flops: 3 * flops, bytes: 3 * (common + touched) * bytes + constants.traffic * held, link: 2 * sent + averaged, held: constants.held * held }
    : { flops, bytes: (common + touched) * bytes + cache, link: sent, held: held * bytes + cache };
  const parts = { compute: cost.flops / device.flops, memory: cost.bytes / device.bandwidth, network: cost.link / device.link };
  const bound = Object.keys(parts).reduce((x, y) => (parts[y] > parts[x] ? y : x));
  return { ...cost, cache, parts, bound, fits: cost.held <= device.memory };
}

/** Three figures and the unit that suits. */
function short(value, unit) {
  const steps = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]];
  const [size, prefix] = steps.find(([s]) => value >= s) ?? [1, ""];
  return `${(value / size).toPrecision(3).replace(/\.?0+$/, (z) => (z[0] === "." ? "" : z))} ${prefix}${unit}`;
}
const time = (s) => (s >= 1 ? `${s.toPrecision(3)} s` : s >= 1e-3 ? `${(s * 1e3).toPrecision(3)} ms` : `${(s * 1e6).toPrecision(3)} µs`);

function render({ model, el }) {
  const { get, set, on, labelled, menu, show } = tie(model);
  const limits = get("limits"), presets = get("presets"), devices = get("devices");

  // --- controls
  const fields = {};
  const field = (key, label) => {
    const input = h("input", { type: "number", min: 1, max: limits[key], step: 1, "aria-label": label });
    on(input, "change", () => {
      const value = Math.round(Number(input.value));
      if (Number.isFinite(value)) set({ [key]: clamp(value, 1, limits[key]) });
      input.value = get(key); // what was clamped is shown
    });
    fields[key] = input;
    return labelled(label, input);
  };
  const names = (dict) => Object.keys(dict).map((name) => [name, name]);
  const controls = h("div.controls", {},
    menu("preset", "Model", names(presets), (name) => set({ preset: name, ...Object.fromEntries(SHAPE.map((key) => [key, presets[name][key]])) })),
    field("width", "Width d"), field("expert_width", "Expert width ff"), field("experts", "Experts E"),
    field("top_k", "Per token k"), field("layers", "Layers"));
  const machine = h("div.controls", {},
    menu("device", "Device", names(devices)),
    field("ranks", "Devices"), field("batch", "Texts in the batch"), field("context", "Tokens in each"),
    menu("bytes_per_weight", "Weights in", [[4, "float32"], [2, "bf16"], [1, "int8"], [0.5, "int4"]]));

  // --- answers
  const said = h("p.said", { role: "status" });
  const phases = ["decode", "prefill", "train"], body = h("tbody"), rows = {};
  for (const phase of phases) {
    const cells = ["held", "flops", "bytes", "link", "compute", "memory", "network", "verdict"].map((key) => [key, h("td")]);
    rows[phase] = Object.fromEntries(cells);
    body.append(h("tr", {}, h("th", { scope: "row" }, phase), ...cells.map(([, cell]) => cell)));
  }
  const heads = ["to hold", "FLOPs", "bytes read", "bytes sent", "compute", "memory", "network", "so it is"];
  const table = h("table", {}, h("caption", {}, "One step, for each device"),
    h("thead", {}, h("tr", {}, h("td"), ...heads.map((head) => h("th", { scope: "col" }, head)))), body);
  const root = h("div.cost-calculator", {}, controls, machine, said,
    h("div.scroll", { tabIndex: 0, role: "region", "aria-label": "Costs" }, table),
    h("p.quiet", {}, "Decode: one new token for each text. Prefill: all tokens at once. Train: forward, backward and AdamW. Each time is what that part would take alone at the device's full speed; the longest (outlined) is the bound, and no real step is faster."));

  // --- painting
  function paint() {
    for (const [key, input] of Object.entries(fields)) {
      const value = String(get(key));
      if (input.value !== value) input.value = value;
    }
    const base = presets[get("preset")], a = { ...base };
    for (const key of SHAPE) a[key] = get(key);
    a.top_k = Math.min(a.top_k, a.experts);
    a.dense_first = Math.min(base.dense_first, a.layers);
    a.cross = Math.min(base.cross, a.layers);
    const device = devices[get("device")], c = count(a), bytes = get("bytes_per_weight");
    for (const phase of phases) {
      const cost = step(a, device, phase, get("batch"), get("context"), get("ranks"), bytes, get("constants"));
      const cells = rows[phase];
      cells.held.textContent = short(cost.held, "B");
      cells.flops.textContent = short(cost.flops, "");
      cells.bytes.textContent = short(cost.bytes, "B");
      cells.link.textContent = short(cost.link, "B");
      for (const [part, seconds] of Object.entries(cost.parts)) {
        cells[part].textContent = time(seconds);
        cells[part].classList.toggle("bound", part === cost.bound);
      }
      cells.verdict.textContent = `${cost.bound}-bound, ${cost.fits ? "fits" : "does not fit"}`;
    }
    said.textContent = `${c.total.toLocaleString("en")} parameters, ${c.active.toLocaleString("en")} active for a token; ` +
      `${short(c.total * bytes, "B")} of weights, and ${short(c.cached * a.layers * 2, "B")} of cache for each token of each text.`;
  }

  return show(el, root, [...Object.keys(fields), "preset", "device", "bytes_per_weight"], paint);
}

export default { render };
