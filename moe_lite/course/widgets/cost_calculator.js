// The cost calculator. Python sends the presets and the devices; the counting is done here, as in
// moe_lite/course/cost.py, so the page answers without a kernel.

const SHAPE = ["width", "expert_width", "experts", "top_k", "layers"];

/** Parameters by part. */
function count(a) {
  const D = a.width, L = a.layers, M = Math.floor((L - a.dense_first) / a.every), usual = L - a.other;
  const expert = a.matrices * D * a.expert_width, out = a.heads * a.head_dim;
  const values = a.heads * (a.value_dim || a.head_dim), query = out + a.heads * a.rope_dim;
  const attention = a.kv_rank
    ? (a.q_rank ? (D + query) * a.q_rank : D * query) + D * (a.kv_rank + a.rope_dim) + a.kv_rank * (out + values) + values * D
    : 2 * D * (out + a.kv_heads * a.head_dim);
  const experts = M * a.experts * expert, embedding = a.vocab * D;
  const norms = (2 * L + a.cross + 1 + (a.cross ? 1 : 0)) * D + usual * (a.q_rank + a.kv_rank) + a.extra;
  const total = embedding * (a.tied ? 1 : 2) + (usual + a.cross) * attention + a.other * a.other_size +
    M * a.experts * D + experts + norms + (L - M) * a.matrices * D * a.dense_width + M * a.shared * expert;
  const active = total - M * (a.experts - a.top_k) * expert;
  return { M, experts, embedding, total, active };
}

/** What each of so many kept tokens costs, added up over the layers. */
function overLayers(a, tokens, each, ofOther, reads) {
  const seen = reads && a.sparse ? Math.min(tokens, a.sparse) : tokens;
  const full = a.layers + a.cross - a.windowed - a.other;
  return (full * seen + a.windowed * Math.min(tokens, a.window)) * each + a.other * tokens * ofOther;
}
const cached = (a) => (a.kv_rank ? a.kv_rank + a.rope_dim : 2 * a.kv_heads * a.head_dim);
const products = (a, oneByOne) => a.heads * (a.kv_rank && oneByOne
  ? 2 * a.kv_rank + a.rope_dim : a.head_dim + a.rope_dim + (a.value_dim || a.head_dim));

/** How often a token's vector travels in one exchange: inside its node, between nodes. */
function copies(a, ranks, size, byNode) {
  const node = Math.min(size, ranks), K = a.top_k;
  if (!byNode) return [(K * (node - 1)) / ranks, (K * (ranks - node)) / ranks];
  const nodes = Math.max(ranks / node, 1), reach = Math.min(a.nodes || nodes, nodes);
  const met = (places) => places * (1 - (1 - 1 / places) ** K);
  return [(met(reach * node) * (node - 1)) / node, (met(reach) * (nodes - 1)) / nodes];
}

/** One step of a phase: what each device does. */
function step(a, device, phase, batch, context, ranks, weights, constants) {
  const c = count(a), train = phase === "train", decode = phase === "decode";
  const bytes = constants.bytes[weights], few = weights === "fp8" || weights === "fp4";
  const tokens = decode ? batch : batch * context, seen = decode ? context : context / 2;
  const common = c.total - c.experts - (a.tied ? 0 : c.embedding), own = c.experts / ranks;
  const touched = own * (1 - (1 - a.top_k / a.experts) ** tokens), times = train ? 3 : 1;
  const used = common + c.experts - (c.total - c.active);
  const flops = (times * 2 * used * tokens) / ranks;
  const scores = (times * 2 * overLayers(a, seen, products(a, decode), a.other_products, true) * tokens) / ranks;
  const cache = (Math.trunc(batch * overLayers(a, context, cached(a), a.other_cached, false)) * 2) / ranks;
  const read = (overLayers(a, context, cached(a), a.other_cached, true) * 2 * batch) / ranks;
  const away = copies(a, ranks, device.node, !decode), held = c.total - c.experts + own;
  const sent = ((c.M * tokens) / ranks) * a.width * ((few ? 1 + constants.scale : 2) + 2);
  let [inside, between] = away.map((n) => n * sent * (train ? 2 : 1)), exchanges = (train ? 4 : 2) * c.M;
  if (train) {
    const node = Math.min(device.node, ranks), ring = 4 * (c.total - c.experts);
    inside += (ring * (node - 1)) / node;
    between += ((ring / node) * (ranks - node)) / ranks;
    exchanges += 1;
  }
  const cost = train
    ? { bytes: 3 * (common + touched) * bytes + constants.traffic * held, held: constants.held * held }
    : { bytes: (common + touched) * bytes + (decode ? read : cache), held: held * bytes + cache };
  const own_ = { float32: device.bf16 / 2, bf16: device.bf16, fp8: device.fp8, fp4: device.fp4 }[weights];
  const peak = own_ || (weights === "fp4" && device.fp8) || device.bf16;
  const link = inside + between;
  const parts = {
    compute: flops / peak + scores / device.bf16, memory: cost.bytes / device.bandwidth,
    network: Math.max(inside / device.link, between / device.between) + (link ? exchanges * device.startup : 0),
  };
  const bound = Object.keys(parts).reduce((x, y) => (parts[y] > parts[x] ? y : x));
  return { ...cost, flops: flops + scores, inside, between, parts, bound, fits: cost.held <= device.memory };
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
    menu("weights", "Weights in", names(get("constants").bytes)));

  // --- answers
  const said = h("p.said", { role: "status" });
  const phases = ["decode", "prefill", "train"], body = h("tbody"), rows = {};
  for (const phase of phases) {
    const cells = ["held", "flops", "bytes", "inside", "between", "compute", "memory", "network", "verdict"].map((key) => [key, h("td")]);
    rows[phase] = Object.fromEntries(cells);
    body.append(h("tr", {}, h("th", { scope: "row" }, phase), ...cells.map(([, cell]) => cell)));
  }
  const heads = ["to hold", "FLOPs", "bytes read", "sent in the node", "between nodes", "compute", "memory", "network", "so it is"];
  const table = h("table", {}, h("caption", {}, "One step, for each device"),
    h("thead", {}, h("tr", {}, h("td"), ...heads.map((head) => h("th", { scope: "col" }, head)))), body);
  const root = h("div.cost-calculator", {}, controls, machine, said,
    h("div.scroll", { tabIndex: 0, role: "region", "aria-label": "Costs" }, table),
    h("p.quiet", {}, "Decode: one new token for each text. Prefill: all tokens at once. Train: forward, backward and AdamW. Each time is what that part would take alone at the device's full speed; the longest (outlined) is the bound, and no real step is faster. Vectors go straight to each expert in decode, else once to each node."));

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
    a.other = Math.min(base.other, a.layers);
    a.windowed = Math.min(base.windowed, a.layers - a.other);
    const device = devices[get("device")], c = count(a), weights = get("weights");
    for (const phase of phases) {
      const cost = step(a, device, phase, get("batch"), get("context"), get("ranks"), weights, get("constants"));
      const cells = rows[phase];
      cells.held.textContent = short(cost.held, "B");
      cells.flops.textContent = short(cost.flops, "");
      cells.bytes.textContent = short(cost.bytes, "B");
      cells.inside.textContent = short(cost.inside, "B");
      cells.between.textContent = short(cost.between, "B");
      for (const [part, seconds] of Object.entries(cost.parts)) {
        cells[part].textContent = time(seconds);
        cells[part].classList.toggle("bound", part === cost.bound);
      }
      cells.verdict.textContent = `${cost.bound}-bound, ${cost.fits ? "fits" : "does not fit"}`;
    }
    said.textContent = `${c.total.toLocaleString("en")} parameters, ${c.active.toLocaleString("en")} active for a token; ` +
      `${short(c.total * get("constants").bytes[weights], "B")} of weights, and ${short(overLayers(a, 1, cached(a), a.other_cached, false) * 2, "B")} of cache for each of a text's first tokens.`;
  }

  return show(el, root, [...Object.keys(fields), "preset", "device", "weights"], paint);
}

export default { render };
