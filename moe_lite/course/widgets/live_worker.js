// What Python is to a notebook's explorer, this is to the live page's, in a thread of its own: it
// keeps the text as the model ran it, untouched and changed, and answers in the explorer's terms.

const TOP = 5, NEW = 12; // as in routing_explorer.py
let tokenizer, model, plain, changed, shown, job = 0, draw = () => 0;

/** What is read off a token's logits, once: their log-sum-exp and the likeliest next tokens. */
const facts = new WeakMap();
function factsOf(logits) {
  if (facts.has(logits)) return facts.get(logits);
  const top = [], most = logits.reduce((a, b) => Math.max(a, b)), sum = logits.reduce((sum, x) => sum + Math.exp(x - most), 0);
  for (let id = 0; id < logits.length; id++) {
    if (top.length === TOP && !(logits[id] > logits[top[TOP - 1]])) continue;
    let i = Math.min(top.length, TOP - 1);
    for (; i > 0 && logits[id] > logits[top[i - 1]]; i--) top[i] = top[i - 1];
    top[i] = id;
  }
  const found = { log: most + Math.log(sum), top };
  facts.set(logits, found);
  return found;
}
const share = (logits, id) => Math.exp(logits[id] - factsOf(logits).log);

/** Lays arrays of numbers one after another, as the explorer reads them. */
function packed(parts) {
  const arrays = {}, size = Object.values(parts).reduce((sum, part) => sum + part.byteLength, 0), bytes = new Uint8Array(size);
  let at = 0;
  for (const [name, part] of Object.entries(parts)) {
    arrays[name] = [TYPES.get(part.constructor), at, part.length];
    bytes.set(new Uint8Array(part.buffer), at);
    at += part.byteLength;
  }
  return { arrays, data: new DataView(bytes.buffer) };
}
const TYPES = new Map([[Uint8Array, "u1"], [Uint16Array, "u2"], [Uint32Array, "u4"], [Int16Array, "i2"], [Float32Array, "f4"]]);
const block = (columns) => packed({ all: Uint16Array.from(columns.flat()) }).data;
function inWords(ids) { // the different ones, spelled, and where among them each is
  const place = new Map([...new Set(ids)].map((id, i) => [id, i]));
  return [[...place.keys()].map((id) => tokenizer.spell(id)), ids.map((id) => place.get(id))];
}
const in65535 = (share) => Math.round(65535 * share);

/** Where every layer sends every token. */
function trace(run) {
  const routes = run.routes.flat(), start = [0], expert = [], gate = [], probs = [], logit = [];
  for (const { experts, gates, logits } of routes) {
    start.push(start.at(-1) + experts.length);
    expert.push(...experts);
    gate.push(...gates);
    const most = Math.max(...logits), exps = Array.from(logits, (x) => Math.exp(x - most)), sum = exps.reduce((a, b) => a + b);
    for (const x of exps) probs.push(Math.floor((1000 * x) / sum + 0.5));
    for (const x of logits) logit.push(Math.round(Math.max(-32767, Math.min(32767, 100 * x))));
  }
  return {
    tokens: run.ids.map((id) => tokenizer.spell(id)),
    ...packed({ start: Uint32Array.from(start), gate: Float32Array.from(gate), probs: Uint16Array.from(probs), expert: Uint16Array.from(expert), logit: Int16Array.from(logit), keep: new Uint8Array(expert.length).fill(1) }),
  };
}

/** What each token cost, given those before it, in thousandths of a nat; the first has no loss. */
const losses = (run) => run.ids.map((id, t) => (t ? Math.min(65534, Math.round(1000 * (factsOf(run.logits[t - 1]).log - run.logits[t - 1][id]))) : 65535));

/** What the model says as it is: the likeliest next tokens, and each token's loss. */
function untouched(run) {
  const ids = run.logits.flatMap((logits) => factsOf(logits).top), top = factsOf(run.logits[0]).top.length, [words, index] = inWords(ids);
  const shares = run.logits.flatMap((logits) => factsOf(logits).top.map((id) => in65535(share(logits, id))));
  return { key: "[]", words, top, data: block([index, shares, losses(run)]) };
}

/** What is different: from the first token on whose next one is another, or as likely as before. */
function answer(question, cut) {
  const T = plain.length, differs = (t) => {
    const a = plain.logits[t], b = changed.logits[t], shift = factsOf(a).log - factsOf(b).log;
    return a.some((x, id) => Math.abs(x - b[id] - shift) > 1e-5);
  };
  let first = 0;
  while (first < T - 1 && !differs(first)) first++;
  const rows = Array.from({ length: T - first }, (_, i) => [plain.logits[first + i], changed.logits[first + i]]);
  const best = rows.map(([, now]) => factsOf(now).top[0]), [words, index] = inWords(best);
  const columns = [
    rows.flatMap(([was, now]) => factsOf(was).top.map((id) => in65535(share(now, id)))), index,
    rows.map(([was], i) => in65535(share(was, best[i]))), rows.map(([, now], i) => in65535(share(now, best[i]))),
    losses(changed).slice(first),
  ];
  const now = changed.routes.flat(), moved = plain.routes.flat().filter(({ experts }, i) => experts[0] !== now[i].experts[0]).length;
  return { key: JSON.stringify(question), first, words, data: block(columns), moved, ...(cut >= 0 && { next: [cut, goOn([], cut), goOn(question, cut)] }) };
}

/** How the model goes on after a token, always with its likeliest. */
function goOn(question, cut) {
  // What was asked of later tokens of the old text is not meant for the new ones.
  const asked = question.map((i) => (i[5] ? i.with(5, i[5].filter((t) => t <= cut)) : i)), ids = plain.ids.slice(0, cut + 1);
  const run = new Run(model, asked);
  while (ids.length <= cut + NEW && ids.length < room()) ids.push(factsOf(run.follow(ids).logits.at(-1)).top[0]);
  return ids.slice(cut + 1).map((id) => tokenizer.spell(id)).join("");
}

/** The experts of each layer that a name at the text's end went to, from its first token on. */
function served(name) {
  const from = plain.ids.findLastIndex((_, t) => tokenizer.decode(plain.ids.slice(t)).includes(name));
  return plain.routes.map((layer) => [...new Set(layer.slice(from).flatMap(({ experts }) => experts))].sort((a, b) => a - b));
}

const room = () => model.config.max_position_embeddings;

/** Runs these tokens, untouched and with what is asked; gives all that the page shows of them. */
function run(ids, question, cut = -1) {
  plain.follow(ids);
  const key = JSON.stringify(question), text = ids.join(), found = { answer: {}, beside: {} };
  if (JSON.stringify(changed.asked) !== key) changed = new Run(model, question);
  if (text !== shown) Object.assign(found, trace(plain), { answers: { "[]": untouched(plain) } });
  shown = text;
  if (!question.length) return found;
  try {
    changed.follow(ids);
    return { ...found, answer: answer(question, cut), beside: trace(changed) };
  } catch (error) { return { ...found, answer: { key, error: error.message } }; }
}

/** The next token: at temperature 0 the likeliest, else one that is drawn. */
function next({ logits }, temperature) {
  const row = logits.at(-1);
  if (!temperature) return factsOf(row).top[0];
  const most = row[factsOf(row).top[0]], shares = Array.from(row, (x) => Math.exp((x - most) / temperature));
  let left = draw() * shares.reduce((a, b) => a + b);
  return Math.max(0, shares.findIndex((x) => (left -= x) < 0));
}

/** Who writes: the changed model, where one was asked for and can do it. */
const writer = (question) => (question.length && changed.length === plain.length ? changed : plain);
const likely = (question) => factsOf(writer(question).logits.at(-1)).top.map((id) => [id, tokenizer.spell(id), share(writer(question).logits.at(-1), id)]);

/** Numbers from 0 to 1, the same for the same seed (mulberry32). */
const drawing = (seed) => () => {
  seed = (seed + 0x6d2b79f5) | 0;
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
};

/** Lets a later wish be heard. (A timer would, after a few, take 4 ms.) */
const pause = () => new Promise((done) => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => { port1.close(); done(); };
  port2.postMessage(0);
});

const ACTS = {
  load({ layout, bytes, config, vocabulary }) {
    tokenizer = new Tokenizer(vocabulary);
    model = new Mixtral(config, weightsOf(layout, bytes));
    [plain, changed] = [new Run(model), new Run(model)];
    return { ready: true, free: true };
  },
  async show({ text, question, cut, recall }, own, tell) {
    const begun = performance.now(), ids = text === undefined ? plain.ids : tokenizer.encode(text);
    if (!ids.length) throw new Error("there is no text to run: give at least one word");
    if (ids.length > room()) throw new Error(`${ids.length} tokens are more than the model’s context of ${room()}`);
    const traits = run([...ids], question);
    tell({ traits, took: performance.now() - begun, ran: ids.length, next: likely(question), free: true });
    await pause();
    if (recall && own === job) tell({ recalled: { said: goOn([], ids.length - 1), by: served(recall), ...(question.length && !traits.answer.error && { changed: goOn(question, ids.length - 1) }) } });
    if (question.length && own === job && !traits.answer.error) return { traits: { answer: answer(question, Math.min(cut, ids.length - 1)) } };
  },
  again: ({ question, cut }) => ({ traits: { answer: answer(question, cut) }, free: true }),
  async write({ text, question, count, temperature, seed, take }, own, tell) {
    if (text !== undefined) plain.follow(tokenizer.encode(text));
    if (!plain.length) throw new Error("there is no text to go on from: give at least one word");
    draw = drawing(seed);
    run([...plain.ids], question);
    const begun = performance.now();
    let made = 0, ended = false;
    for (; made < count && own === job && plain.length < room(); await pause()) {
      const id = take ?? next(writer(question), temperature);
      if ((ended = [model.config.eos_token_id].flat().includes(id))) break;
      const traits = run([...plain.ids, id], question);
      tell({ traits, written: tokenizer.decode(plain.ids), rate: (1000 * ++made) / (performance.now() - begun), made, next: likely(question) });
    }
    return { free: true, ended };
  },
  stop: () => null,
};

/** One wish after another: of the page's, only the last counts. An answer names its wish's turn. */
globalThis.onmessage = async ({ data: { act, turn, ...wish } }) => {
  const own = ++job, tell = (answer) => postMessage({ turn, ...answer });
  try {
    const answer = await ACTS[act](wish, own, tell);
    if (answer && (own === job || answer.free)) tell(answer);
  } catch (error) { tell({ problem: error.message, free: true }); }
};
