// A Mixtral in plain JavaScript: the forward pass of moe_lite/model.py, line by line, with nothing
// between it and the numbers. Shapes: T tokens, D model, E experts, F expert-hidden, V vocabulary,
// A head size. A matrix is { data, rows, cols }, row by row; tokens lie one after another.

/** out (T, rows) = x (T, cols) times the matrix, transposed. */
function product(matrix, x, T) {
  const out = new Float32Array(T * matrix.rows);
  for (let t = 0; t < T; t += 4) {
    if (T - t === 1) one(matrix, x, t, out);
    else few(matrix, x, t, Math.min(4, T - t), out);
  }
  return out;
}

/** One token: four sums at once, which do not wait for each other. */
function one({ data, rows, cols }, x, t, out) {
  const from = t * cols, whole = cols - (cols % 4);
  for (let r = 0, at = 0; r < rows; r++) {
    let a = 0, b = 0, c = 0, d = 0, i = 0;
    for (; i < whole; i += 4, at += 4) {
      a += data[at] * x[from + i]; b += data[at + 1] * x[from + i + 1];
      c += data[at + 2] * x[from + i + 2]; d += data[at + 3] * x[from + i + 3];
    }
    for (; i < cols; i++, at++) a += data[at] * x[from + i];
    out[t * rows + r] = a + b + c + d;
  }
}

/** Two to four tokens by two rows: six numbers are read for eight products. (Of an odd number of
 *  rows the last is worked out twice.) */
function few({ data, rows, cols }, x, t, T, out) {
  const y = new Float64Array(4 * cols); // the tokens' numbers side by side, zeros for those missing
  for (let j = 0; j < T; j++) for (let i = 0; i < cols; i++) y[4 * i + j] = x[(t + j) * cols + i];
  for (let r = 0; r < rows; r += 2) {
    const next = Math.min(r + 1, rows - 1);
    let a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
    for (let i = 0, at = r * cols, below = next * cols; i < 4 * cols; i += 4, at++, below++) {
      const w = data[at], v = data[below], y0 = y[i], y1 = y[i + 1], y2 = y[i + 2], y3 = y[i + 3];
      a += w * y0; b += w * y1; c += w * y2; d += w * y3;
      e += v * y0; f += v * y1; g += v * y2; h += v * y3;
    }
    let o = t * rows;
    out[o + r] = a; out[o + next] = e;
    out[(o += rows) + r] = b; out[o + next] = f;
    if (T > 2) { out[(o += rows) + r] = c; out[o + next] = g; }
    if (T > 3) { out[(o += rows) + r] = d; out[o + next] = h; }
  }
}

/** Divides each token by its root mean square, and weighs its coordinates. */
function norm(x, weight, eps) {
  const D = weight.length, out = new Float32Array(x.length);
  for (let at = 0; at < x.length; at += D) {
    let sum = 0;
    for (let i = 0; i < D; i++) sum += x[at + i] ** 2;
    const scale = 1 / Math.sqrt(sum / D + eps);
    for (let i = 0; i < D; i++) out[at + i] = x[at + i] * scale * weight[i];
  }
  return out;
}

function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

/** Which experts a token gets, with what weight: the router, and whatever was asked to change it.
 *  `asked`: what concerns this layer and token, as [kind, layer, expert, other, number, tokens]. */
function route(logits, top_k, asked = []) {
  const all = Array.from(logits.keys()), wish = Array.from(logits), forced = new Set(), banned = new Set();
  let k = top_k;
  // 1. choose: the k largest scores; of equals, the first
  for (const [kind, , expert, , number] of asked) {
    if (kind === "top_k") k = number;
    if (kind === "force") { forced.add(expert); wish[expert] = Infinity; }
    if (kind === "ban") { banned.add(expert); wish[expert] = -Infinity; }
  }
  if ([...forced].some((e) => banned.has(e))) throw new Error("one expert is both forced and banned");
  if (forced.size > k) throw new Error("more experts are forced than it has");
  if (all.length - banned.size < k) throw new Error("fewer experts are left to choose from than it has");
  const first = (scores) => (a, b) => (scores[a] === scores[b] ? a - b : scores[b] - scores[a]);
  let experts = all.sort(first(wish)).slice(0, k).sort(first(logits));
  // 2. weigh: the softmax of the chosen
  const exps = experts.map((e) => Math.exp(logits[e] - logits[experts[0]])), sum = exps.reduce((a, b) => a + b);
  const gates = exps.map((x) => x / sum);
  // 3. what is asked of the pairs, in its order
  for (const [kind, , expert, other, number] of asked) {
    if (kind === "swap") experts = experts.map((e) => (e === expert ? other : e === other ? expert : e));
    const factor = { ablate: 0, scale: number }[kind];
    if (factor !== undefined) experts.forEach((e, i) => { if (e === expert) gates[i] *= factor; });
  }
  return { experts, gates, logits };
}

class Mixtral {
  /** weights: from each parameter's name (as PyTorch has it) to a matrix, or a Float32Array. */
  constructor(config, weights) {
    const { head_dim: A, num_attention_heads: H, num_key_value_heads: H_kv, num_local_experts: E } = config;
    Object.assign(this, { config, weights, A, H, H_kv, E, D: config.hidden_size, F: config.intermediate_size, V: config.vocab_size, L: config.num_hidden_layers });
    this.head = weights["lm_head.weight"] ?? weights["embed_tokens.weight"]; // one matrix, where tied
    this.part = {}; // each expert's rows of the three stacked matrices
    for (let l = 0; l < this.L; l++)
      for (const name of ["w1", "w2", "w3"]) {
        const { data, rows, cols } = weights[`layers.${l}.block_sparse_moe.experts.${name}`], own = rows / E;
        for (let e = 0; e < E; e++) this.part[`${l}.${e}.${name}`] = { data: data.subarray(e * own * cols, (e + 1) * own * cols), rows: own, cols };
      }
  }

  /** Turns each pair of coordinates (i, i + A/2) of every head by its position's angle, in float32
   *  as PyTorch does: an angle of 1,000 radians has few digits left after the point. */
  rotate(x, heads, start) {
    const { A } = this, half = A / 2, f = Math.fround;
    for (let i = 0; i < half; i++) {
      const slow = f(Math.pow(this.config.rope_theta, f((2 * i) / A)));
      for (let at = i, p = start; at < x.length; p++) {
        const angle = f(p / slow), cos = f(Math.cos(angle)), sin = f(Math.sin(angle));
        for (let h = 0; h < heads; h++, at += A) {
          const a = x[at], b = x[at + half];
          x[at] = a * cos - b * sin;
          x[at + half] = b * cos + a * sin;
        }
      }
    }
    return x;
  }

  /** Each token looks at those before it, and at itself; `run` keeps their keys and values. */
  attention(l, x, T, run) {
    const { A, H, H_kv, config } = this, W = (name) => this.weights[`layers.${l}.self_attn.${name}_proj.weight`];
    const start = run.length, wide = H_kv * A, shared = H / H_kv, scale = 1 / Math.sqrt(A);
    const { k, v } = run.room(l, start + T);
    const q = this.rotate(product(W("q"), x, T), H, start);
    k.set(this.rotate(product(W("k"), x, T), H_kv, start), start * wide);
    v.set(product(W("v"), x, T), start * wide);
    const out = new Float32Array(T * H * A), share = new Float64Array(start + T);
    for (let t = 0; t < T; t++)
      for (let h = 0; h < H; h++) {
        const own = (t * H + h) * A, theirs = Math.floor(h / shared) * A, end = start + t;
        const begin = Math.max(0, end + 1 - (config.sliding_window ?? Infinity));
        let most = -Infinity, total = 0;
        for (let p = begin; p <= end; p++) {
          let score = 0;
          for (let i = 0, at = p * wide + theirs; i < A; i++) score += q[own + i] * k[at + i];
          share[p] = score * scale;
          if (share[p] > most) most = share[p];
        }
        for (let p = begin; p <= end; p++) total += share[p] = Math.exp(share[p] - most);
        for (let p = begin; p <= end; p++) {
          const part = share[p] / total;
          for (let i = 0, at = p * wide + theirs; i < A; i++) out[own + i] += part * v[at + i];
        }
      }
    return product(W("o"), out, T);
  }

  /** The mixture of experts: each token through its own few networks. */
  experts(l, x, T, run) {
    const { D, E, F, config } = this, out = new Float32Array(T * D), start = run.length;
    // 1. route: who goes where
    const scores = product(this.weights[`layers.${l}.block_sparse_moe.gate.weight`], x, T);
    for (let t = 0; t < T; t++) {
      const asked = run.asked.filter(([, layer, , , , tokens]) => (layer === null || layer === l) && (!tokens || tokens.includes(start + t)));
      try {
        run.routes[l].push(route(scores.slice(t * E, (t + 1) * E), config.num_experts_per_tok, asked));
      } catch (error) { throw new Error(`token ${start + t}: ${error.message}`); }
    }
    for (let e = 0; e < E; e++) {
      // 2. dispatch: the rows that this expert gets
      const pairs = [];
      for (let t = 0; t < T; t++) {
        const { experts, gates } = run.routes[l][start + t], i = experts.indexOf(e);
        if (i >= 0) pairs.push([t, gates[i]]);
      }
      if (!pairs.length) continue;
      const rows = new Float32Array(pairs.length * D), W = (name) => this.part[`${l}.${e}.${name}`];
      pairs.forEach(([t], n) => rows.set(x.subarray(t * D, (t + 1) * D), n * D));
      // 3. the expert: w2 (silu(w1 x) * w3 x)
      const hidden = product(W("w1"), rows, pairs.length), up = product(W("w3"), rows, pairs.length);
      for (let i = 0; i < pairs.length * F; i++) hidden[i] = (hidden[i] / (1 + Math.exp(-hidden[i]))) * up[i];
      const done = product(W("w2"), hidden, pairs.length);
      // 4. combine: back to the tokens, weighed
      pairs.forEach(([t, gate], n) => { for (let i = 0; i < D; i++) out[t * D + i] += gate * done[n * D + i]; });
    }
    return out;
  }

  /** Runs further tokens after those that `run` holds; it then holds these too, and their logits. */
  extend(run, ids) {
    const { D, V, L, weights, config } = this, T = ids.length, table = weights["embed_tokens.weight"].data;
    const x = new Float32Array(T * D), normed = (name) => norm(x, weights[name], config.rms_norm_eps);
    ids.forEach((id, t) => x.set(table.subarray(id * D, (id + 1) * D), t * D));
    for (let l = 0; l < L; l++) {
      add(x, this.attention(l, normed(`layers.${l}.input_layernorm.weight`), T, run));
      add(x, this.experts(l, normed(`layers.${l}.post_attention_layernorm.weight`), T, run));
    }
    const logits = product(this.head, normed("norm.weight"), T);
    for (let t = 0; t < T; t++) run.logits.push(logits.subarray(t * V, (t + 1) * V));
    run.ids.push(...ids);
  }
}

/** A text as the model ran it, with what was asked to be changed: the keys and values, each layer's
 *  routes and the logits, for each token. A text that begins alike runs only what is new. */
class Run {
  constructor(model, asked = []) {
    Object.assign(this, { model, asked });
    this.clear(0);
  }

  get length() { return this.ids.length; }

  clear(length) {
    this.ids = this.ids?.slice(0, length) ?? [];
    this.logits = this.logits?.slice(0, length) ?? [];
    const layers = Array.from({ length: this.model.L }, (_, l) => l);
    this.routes = layers.map((l) => this.routes?.[l].slice(0, length) ?? []);
    this.kept ??= layers.map(() => ({ k: new Float32Array(0), v: new Float32Array(0) }));
  }

  /** The keys and values of a layer, with room for so many tokens. */
  room(l, tokens) {
    const { H_kv, A } = this.model, kept = this.kept[l], size = tokens * H_kv * A;
    for (const name of ["k", "v"]) if (kept[name].length < size) {
      const larger = new Float32Array(2 * size);
      larger.set(kept[name]);
      kept[name] = larger;
    }
    return kept;
  }

  /** Makes this the run of these tokens: keeps what is alike at the beginning. */
  follow(ids) {
    let same = 0;
    while (same < ids.length && this.ids[same] === ids[same]) same++;
    this.clear(same);
    try {
      if (same < ids.length) this.model.extend(this, ids.slice(same));
    } catch (error) { this.clear(same); throw error; }
    return this;
  }
}

/** Unpacks the weights: int8 rows times the scale of each, and float32 as it is. */
function weightsOf(layout, buffer) {
  const found = {};
  for (const [name, { rows, cols, scale, at }] of Object.entries(layout)) {
    if (scale === undefined) { // a vector, or a matrix kept whole: the router
      const data = new Float32Array(buffer, at, rows * (cols ?? 1));
      found[name] = cols ? { data, rows, cols } : data;
      continue;
    }
    const packed = new Int8Array(buffer, at, rows * cols), scales = new Float32Array(buffer, scale, rows);
    const data = new Float32Array(rows * cols);
    for (let r = 0, i = 0; r < rows; r++) for (let c = 0; c < cols; c++, i++) data[i] = packed[i] * scales[r];
    found[name] = { data, rows, cols };
  }
  return found;
}
