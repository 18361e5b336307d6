// The routing explorer. Python sends a trace once, as lists and one block of typed arrays; from
// then on a few numbers travel either way: `selected` (a token, -1 none), `layer`, `expert` (a
// filter, -1 none), `frame` (of a film), and a `question` with its `answer`. Each panel builds its
// elements once and later changes only what differs.

const NONE = 0xffff; // the first expert of a token that reached none; a probability that is unknown
const NO_SCORE = -32768; // a logit that is unknown
const ARRAYS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i2: Int16Array, f4: Float32Array };
const LEFT = 30; // pixels for the layer numbers beside the map
const BEAT_MS = 250; // between two frames of a film
const MANY = 16; // above this number of experts, bars stand in columns

/** Changes a text or an attribute only if it differs: the browser then has nothing to redo. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
function put(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

const nth = (n) => `${n}${n % 100 > 10 && n % 100 < 14 ? "th" : ["th", "st", "nd", "rd"][n % 10] ?? "th"}`;

/** Spells a token for a voice. */
const voice = (text) =>
  text.trim() || (text.includes("\n") ? "line break" : text.includes("\t") ? "tab" : text ? "space" : "empty");

// ------------------------------------------------------------------------------------ the data

function arraysOf(model) {
  const film = model.get("film");
  if (film?.logits) return frameOf(film, model.get("frame"));
  const whole = film?.frames?.[model.get("frame")] ?? { data: model.get("data"), arrays: model.get("arrays") };
  const bytes = cut(whole.data), array = {};
  for (const [name, [type, offset, length]] of Object.entries(whole.arrays))
    array[name] = new ARRAYS[type](bytes, offset, length);
  return array;
}

let halves; // the values of all numbers of half precision
function half(bits) {
  halves ??= Float32Array.from({ length: 65536 }, (_, b) => {
    const power = (b >> 10) & 31, part = b & 1023;
    return (b & 0x8000 ? -1 : 1) * (power ? 2 ** (power - 15) * (1 + part / 1024) : part * 2 ** -24);
  });
  return halves[bits];
}

/** One frame of a Mixtral's film is its router logits at half precision: routes them as it did. What
 *  is shown of one token only, its probabilities, is worked out when it is asked for. */
function frameOf({ logits, shape: [, L, T, E], top_k: K }, frame) {
  const rows = L * T, size = rows * E, bits = new Uint16Array(cut(logits, 2 * size * frame, 2 * size * (frame + 1)));
  const expert = new Uint16Array(rows * K), gate = new Float32Array(rows * K), best = new Float64Array(K);
  half(0);
  for (let row = 0; row < rows; row++) {
    let n = 0, sum = 0;
    const at = row * K;
    for (let e = 0; e < E; e++) { // the K largest, in order; of equals, the first
      const x = halves[bits[row * E + e]];
      if (n === K && !(x > best[K - 1])) continue;
      let i = n < K ? n++ : K - 1;
      for (; i > 0 && x > best[i - 1]; i--) { best[i] = best[i - 1]; expert[at + i] = expert[at + i - 1]; }
      best[i] = x;
      expert[at + i] = e;
    }
    for (let i = 0; i < K; i++) sum += gate[at + i] = Math.exp(best[i] - best[0]);
    for (let i = 0; i < K; i++) gate[at + i] /= sum;
  }
  const logit = (i) => half(bits[i]);
  const prob = (i) => { // in thousandths
    const begin = i - (i % E);
    let sum = 0;
    for (let e = begin; e < begin + E; e++) sum += Math.exp(logit(e) - logit(i));
    return Math.floor(1000 / sum + 0.5);
  };
  const start = Uint32Array.from({ length: rows + 1 }, (_, row) => row * K);
  return { start, expert, gate, keep: new Uint8Array(rows * K).fill(1), filmed: { logit, prob, most: 1 / K } };
}

function unpack(model) {
  const array = arraysOf(model);
  const tokens = model.get("tokens"), names = model.get("layer_names");
  const sizes = model.get("num_experts"), T = tokens.length, L = names.length;
  const { start, expert, gate, keep, probs, logit, noise, bias, filmed } = array;
  const first = new Uint16Array(L * T).fill(NONE); // where the token went: gives the colour
  const depth = new Uint8Array(L * T); // 0..4: how much of its weight went there: the tint
  const lost = new Uint8Array(L * T); // how many of its pairs were dropped
  const load = sizes.map((E) => new Uint32Array(E)), gates = sizes.map((E) => new Float64Array(E));
  const kept = new Uint32Array(L), dropped = new Uint32Array(L);
  for (let l = 0, row = 0; l < L; l++) {
    for (let t = 0; t < T; t++, row++) {
      let n = 0, sum = 0, top = 0;
      for (let i = start[row]; i < start[row + 1]; i++) {
        if (!keep[i]) { lost[row]++; dropped[l]++; continue; }
        if (n++ === 0) { first[row] = expert[i]; top = gate[i]; }
        sum += gate[i];
        load[l][expert[i]]++;
        gates[l][expert[i]] += gate[i];
      }
      kept[l] += n;
      depth[row] = n > 1 && sum > 0 ? Math.round(4 * clamp((top / sum - 1 / n) / (1 - 1 / n), 0, 1)) : 4;
    }
  }
  const before = sizes.map((_, l) => sum(sizes.slice(0, l))), base = before.map((n) => n * T);
  const queues = model.get("queues");
  const share = (l, e) => load[l][e] / Math.max(1, kept[l]);
  const all = gates.map((g_E) => sum(g_E)), mass = (l, e) => (all[l] > 0 ? gates[l][e] / all[l] : 0);
  return {
    T, L, E: Math.max(...sizes), tokens, ...grouped(tokens), names, sizes, first, depth, lost, load, dropped, share, mass,
    colors: model.get("colors"),
    prob: (l, t, e) => { const i = base[l] + t * sizes[l] + e; return filmed ? filmed.prob(i) : probs[i] === NONE ? NaN : probs[i]; }, // in thousandths
    logit: (l, t, e) => { const i = base[l] + t * sizes[l] + e; return filmed ? filmed.logit(i) : logit[i] === NO_SCORE ? NaN : logit[i] / 100; },
    rule: (l) => (filmed ? "" : model.get("rules")?.[l] ?? ""),
    added: (l, t, e) => { // what chance and a controller added to the score, in words
      const chance = noise?.[base[l] + t * sizes[l] + e] ?? 0, steady = bias?.[before[l] + e] ?? 0;
      return [chance && `noise ${signed(chance / 100, 2)}`, steady && `bias ${signed(steady, 3)}`].filter(Boolean).join(", ");
    },
    pairs: (l, t) => {
      const row = l * T + t, list = [];
      for (let i = start[row]; i < start[row + 1]; i++)
        list.push({ expert: expert[i], gate: gate[i], kept: keep[i] === 1, at: i });
      return list;
    },
    /** A pair's place in its expert's queue, from 1, and the queue's length. */
    place: (l, t, { at, expert: e }) => {
      const [priority, size] = queues[l], group = size || T, begin = l * T + t - (t % group);
      const choice = (i, row) => (priority === "choice" ? i - start[row] : priority === "gate" ? -gate[i] : 0);
      const own = choice(at, l * T + t);
      let place = 1, length = 0;
      for (let row = begin; row < Math.min(begin + group, (l + 1) * T); row++)
        for (let i = start[row]; i < start[row + 1]; i++) {
          if (expert[i] !== e) continue;
          length++;
          const other = choice(i, row);
          if (other < own || (other === own && i < at)) place++;
        }
      return [place, length];
    },
    hits: (l, e) => { // which tokens an expert got: 0 no, else 1..5 by the share of its weight
      const hit = new Uint8Array(T);
      for (let t = 0; t < T; t++) {
        let sum = 0, own = -1;
        for (let i = start[l * T + t]; i < start[l * T + t + 1]; i++) {
          if (!keep[i]) continue;
          sum += gate[i];
          if (expert[i] === e) own = gate[i];
        }
        if (own >= 0) hit[t] = 1 + Math.round(4 * clamp(sum > 0 ? own / sum : 1, 0, 1));
      }
      return hit;
    },
    // One scale for all tokens, layers and frames, so that bars may be compared while stepping.
    maxProb: filmed ? 1000 : Math.max(1, probs.reduce((a, b) => (b === NONE ? a : Math.max(a, b)), 0)),
    maxShare: filmed ? filmed.most : Math.max(...sizes.map((E, l) => Math.max(1.5 / E, ...Array.from({ length: E }, (_, e) => share(l, e))))),
  };
}

/** A number, or that it is not known. */
const known = (value, text) => (Number.isNaN(value) ? "?" : text(value));
const scored = (value) => known(value, (x) => signed(x, 2));

/** Says in a sentence where a layer sends a token. */
function describe(data, l, t, name, most) {
  const pairs = data.pairs(l, t), kept = pairs.filter((p) => p.kept), gone = pairs.filter((p) => !p.kept);
  const list = kept.slice(0, most).map((p) => `expert ${p.expert} with ${p.gate.toFixed(2)}`);
  if (kept.length > most) list.push(`and ${kept.length - most} more`);
  if (gone.length) list.push(`dropped by ${gone.map((p) => `expert ${p.expert}`).join(" and ")}, which was full`);
  if (!pairs.length) list.push("no expert took it");
  return `Token “${name(data.tokens[t])}”${data.part[t]}, layer ${l}: ${list.join(", ")}.`;
}

// ---------------------------------------------------------------------------------- the colours

/** The rules of each expert: e5 gives bars and chips its colour, t5 a token its tint. A token's
 *  rules set only what moves nothing and no child inherits: recolouring a text is then cheap. */
const rules = (colors) =>
  colors.map((color, e) => {
    const c = rgb(color).join(" ");
    return `.moe .e${e}{--c:${c};--on:${inkOn(color)}}.moe .tok>.t${e}{border-color:rgb(${c})}` +
      [0, 1, 2, 3, 4].map((w) => `.moe .t${e}.w${w}{background-color:rgb(${c}/var(--w${w}))}`).join("") +
      `.moe [aria-selected="true"]>.t${e}{background-color:rgb(${c});color:${inkOn(color)}}@media print{.moe .t${e}::after{content:"${e}";font-size:8px;vertical-align:sub}}`;
  }).join("\n");

// ----------------------------------------------------------------------------------- the tokens

const BYTES = "((?:⟨[0-9A-F ]+⟩)+)", FIRST = new RegExp(`^(.*?)${BYTES}$`, "s"), THEN = new RegExp(`^${BYTES}(.*)$`, "s");

/** Spells bytes, written ⟨E3 81⟩; undefined while they are part of a character. */
function decoded(bytes) {
  const held = Uint8Array.from(bytes.match(/[0-9A-F]{2}/g), (x) => parseInt(x, 16));
  try { return new TextDecoder("utf-8", { fatal: true }).decode(held); } catch { return undefined; }
}

/** Groups tokens that hold bytes into what they spell: the first is shown as the character, a dot
 *  stands for each of the others; `part` says which of them a token is. */
function grouped(tokens) {
  const shown = [...tokens], part = tokens.map(() => "");
  for (let t = 0; t < tokens.length; t++) {
    const [, before, bytes] = FIRST.exec(shown[t]) ?? [];
    for (let u = t + 1, all = bytes, rest = ""; bytes && !rest && u < tokens.length; u++) {
      const [, more, after] = THEN.exec(tokens[u]) ?? [];
      if (!more) break;
      [all, rest] = [all + more, after];
      const text = decoded(all);
      if (text === undefined) continue;
      for (let v = t; v <= u; v++) [shown[v], part[v]] = ["·", `, ${nth(v - t + 1)} of ${u - t + 1} for “${text}”`];
      shown[t] = before + text;
      shown[u] += rest;
      t = u - 1; // its end may begin another
      break;
    }
  }
  return { shown, part };
}

/** Text with its white space marked, quietly; a line break is marked here and made elsewhere. */
function marked(text) {
  return text.split(/(\t+| +|\n)/).filter(Boolean).map((part) =>
    part === "\n" ? h("span.nl") : part[0] === "\t" ? h("span.tab", {}, part) : part[0] === " " ? h("span.sp", {}, part) : part);
}

/** A token as an option. Its leading space stands before the tint; each further line has its own. */
function option(text, t) {
  let [, lead, body] = /^(\s*)(.*)$/su.exec(text);
  if (!body) [lead, body] = ["", lead]; // all space: then the space is the token
  if (/^[\p{Cc}\p{Cf}]+$/u.test(body.trim())) // nothing to see: name the code points
    body = [...body].map((c) => `U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`).join(" ");
  const element = h("span.tok", { role: "option", tabIndex: -1, "aria-selected": "false" });
  element.dataset.t = t;
  for (const line of lead.split(/(?<=\n)/)) element.append(...marked(line), line.endsWith("\n") ? "\n" : "");
  (body || "∅").split(/(?<=\n)/).forEach((line, i) => {
    // A combining mark needs something to stand on; a slim token, room for its number.
    const part = h("b", {}, /^\p{M}/u.test(line) ? "◌" : "", ...marked(line));
    part.slim = !i && [...line.trim()].length < 2 && !/[\u1100-\uffff]/.test(line);
    element.append(part, line.endsWith("\n") ? "\n" : "");
  });
  if (!text.trim()) element.setAttribute("aria-label", voice(text));
  return element;
}

// ------------------------------------------------------------------------------------ the widget

function build(model, el, which = "") {
  const data = unpack(model), { T, L, E } = data, other = model.other?.(); // the trace it is to be compared with
  const moved = (row) => other && other.first[row] !== data.first[row];
  const tied = tie(model), { get, set, on, atEnd, soon, onTheme, live } = tied;
  const id = `moe-${Math.random().toString(36).slice(2)}`;
  let hover = -1, hits = null;

  // --- controls
  const slider = h("input", { type: "range", min: 0, max: L - 1, step: 1, disabled: L === 1 });
  const layerNumber = h("output"), layerName = h("span.quiet");
  const numbers = h("input", { type: "checkbox", checked: true });
  const status = h("span.status", { role: "status" });
  const clear = h("button", { type: "button", hidden: true }, "Show all");
  const filmed = get("film")?.steps ?? [], last = filmed.length - 1, film = [];
  if (filmed.length) film.push(tied.slider("frame", "Training step", { min: 0, max: last }, (n) => filmed[n].toLocaleString("en"), (n) => `step ${filmed[n]}`));
  if (last > 0) film.push(h("span.buttons", {}, ...tied.player("frame", last, BEAT_MS, film[0])));
  const controls = h("div.controls", {},
    h("label.layer", {}, "Layer ", slider, layerNumber), layerName,
    ...film,
    h("span.filter", {}, status, clear),
    h("label", {}, numbers, " expert numbers"));

  // --- the text
  const options = data.shown.map(option), parts = options.map((o) => o.querySelectorAll("b"));
  options.forEach((o, t) => { if (data.part[t]) o.setAttribute("aria-label", data.tokens[t] + data.part[t]); });
  const listbox = h("div.tokens", { role: "listbox", "aria-labelledby": `${id}-text`, "aria-orientation": "horizontal" }, ...options);
  const legend = h("p.quiet");
  const digits = h("canvas.numbers", { "aria-hidden": "true" });
  listbox.append(digits);
  const own = h("textarea", { rows: 3, value: get("text") ?? "", "aria-label": "Your own text" }), run = h("button.act", { type: "button" }, "Run this text");
  const problem = h("p.problem", { role: "alert" });
  const text = h("section.panel.text", {},
    h("h2", { id: `${id}-text` }, "Text"),
    legend, listbox,
    ...(get("live") && !get("typing") ? [h("details.own", { open: Boolean(get("problem")) }, h("summary", {}, "Type your own text"), own, run, problem)] : []));

  // --- one token
  const sentence = h("h2"), hint = h("p.quiet"), announced = h("div.unseen", { "aria-live": "polite" });
  const bars = h("ul.bars"), gateRows = [], strip = h("div.strip", { role: "group", "aria-label": "The token's experts, layer by layer" });
  for (let e = 0; e < E; e++) {
    const fill = h("i"), score = h("span.logit"), value = h("span.value"), weight = h("span.weight");
    gateRows.push({ fill, score, value, weight, row: h(`li.bar.e${e}`, {}, chip(e), score, h("span.track", {}, fill), value, weight) });
  }
  bars.append(...gateRows.map((r) => r.row));
  const steps = data.names.map((_, l) => {
    const chips = h("span.chips"), button = h("button", { type: "button", tabIndex: -1 }, h("span.quiet", {}, String(l)), chips);
    on(button, "click", () => set({ layer: l }));
    return { button, chips };
  });
  strip.append(...steps.map((s) => s.button));
  const added = h("p.quiet"), queue = h("p.quiet"), table = h("tbody"), numbersOfAll = h("details", {}, h("summary", {}, "All layers in numbers"),
    h("table", {}, h("thead", {}, h("tr", {}, ...["layer", "expert", "gate", "logit", "place in its queue"].map((name) => h("th", { scope: "col" }, name)))), table));
  const way = h("div.way", {}, h("h3", {}, "Its experts in every layer"), strip, numbersOfAll);
  const one = h("section.panel.one", { "aria-label": `One token${which}` }, sentence, hint, bars, added, queue, way, announced);

  // --- load
  const loads = h("div.bars", { role: "group", "aria-label": "Load of each expert; press one to see its tokens" }), loadRows = [];
  const loadTitle = h("h2"), loadNote = h("p.quiet");
  for (let e = 0; e < E; e++) {
    const fill = h("i"), equal = h("u"), mark = h("b"), value = h("span.value"), mass = h("span.mass"), count = h("span.count");
    const row = h(`button.bar.e${e}`, { type: "button", "aria-pressed": "false", tabIndex: e ? -1 : 0 },
      chip(e), h("span.track", {}, fill, equal, mark), value, mass, count);
    on(row, "click", () => set({ expert: get("expert") === e ? -1 : e }));
    loadRows.push({ row, fill, equal, mark, value, mass, count });
  }
  loads.append(...loadRows.map((r) => r.row));
  const load = h("section.panel.load", {}, loadTitle, loadNote, loads);

  // --- map
  const canvas = h("canvas"), spacer = h("div.spacer", {}, canvas);
  const frame = h("div.frame", { role: "group", "aria-label": `Map of ${L} layers by ${T} tokens; the text and the layer control reach the same cells by keyboard` }, spacer);
  const map = h("section.panel.map", {},
    h("h2", {}, "Every layer, every token"),
    h("p.quiet", {}, "A row is a layer, a column a token; click a cell. Expert 3 of one layer and expert 3 of another are two networks: compare colours along a row."),
    ...(get("film")?.parts ? [h("p.quiet", {}, `The text: ${get("film").parts.map(([name, from, to]) => `${name} ${from}–${to}`).join(", ")}.`)] : []),
    frame);

  const help = h("p.quiet.help");
  for (const [keys, does] of [["← →", "token"], ["↑ ↓", "line"], ["Shift ↑ ↓", "layer"], ["Home End", "first, last"], [E > 10 ? "0–9 0–9" : E > 1 ? `0–${E - 1}` : "0", "one expert’s tokens"], ["Esc", "clear"]])
    help.append(h("kbd", {}, keys), ` ${does}  `);

  const root = h(`div.routing-explorer.moe${E > MANY ? ".many" : ""}${E > 10 ? ".tens" : ""}`, {}, h("style", {}, rules(data.colors)), h("div.grid", {}, controls, text, one, map, load, help));
  el.append(root);
  const asked = get("answers")?.["[]"] ? asking(data, root, tied) : null;
  if (asked) map.before(asked.panel);
  (asked?.panel ?? load).firstChild.after(...tied.guess());

  // --- painting ---------------------------------------------------------------------------------

  function paintText() {
    const filter = get("expert"), l = get("layer");
    const what = filter < 0 ? "Colour and number: the first expert that the token reached in this layer." : `Marked: what expert ${filter} got in this layer, as a first choice or a later one.`;
    const framed = other ? ` Framed: another expert than beside (${range(T).filter((t) => moved(l * T + t)).length} of ${T} in this layer).` : "";
    say(legend, `${what} The stronger the tint, the more of its weight.${framed}`);
    fresh = 0;
    paintTokens(seen[0] - 40, seen[1] + 40); // at once what is in view,
    soon(paintRest); // the others in the frames after it
    soon(drawNumbers);
  }

  const painted = new Array(T).fill("");
  let fresh = 0, seen = [0, 500]; // all tokens below `fresh` are painted; those in view
  function paintTokens(begin, end) {
    const l = get("layer"), filter = get("expert");
    for (let t = Math.max(0, begin); t < Math.min(T, end); t++) {
      const row = l * T + t, e = data.first[row];
      let name = e === NONE ? "none" : `t${e} w${data.depth[row]}`;
      if (hits) name = hits[t] ? `t${filter} w${hits[t] - 1}` : "dim";
      if (data.lost[row]) name += " lost";
      if (moved(row)) name += " moved";
      if (painted[t] === name) continue;
      painted[t] = name;
      for (const part of parts[t]) part.className = part.slim ? `slim ${name}` : name;
    }
  }
  function paintRest() {
    paintTokens(fresh, fresh + 250);
    fresh += 250;
    if (fresh < T) soon(paintRest);
  }

  /** Writes the experts' numbers into the leading: on a canvas, because as text they would make
   *  the browser set the whole text again at every step. Only around what is in view. */
  function drawNumbers() {
    const width = listbox.clientWidth, room = listbox.clientHeight;
    const top = Math.max(0, listbox.scrollTop - room / 2), height = Math.min(2 * room, listbox.scrollHeight - top);
    digits.hidden = !numbers.checked;
    if (!width || !room || digits.hidden) return;
    digits.style.top = `${top}px`;
    digits.style.width = `${width}px`;
    digits.style.height = `${height}px`;
    const style = getComputedStyle(root), ctx = sheet(digits, width, height), filter = get("expert"), l = get("layer");
    ctx.font = `10.5px ${style.fontFamily}`;
    ctx.textAlign = "center";
    ctx.textBaseline = "top";
    ctx.fillStyle = style.getPropertyValue("--quiet");
    const box = listbox.getBoundingClientRect();
    const left = box.left + listbox.clientLeft, above = box.top + listbox.clientTop - listbox.scrollTop + top;
    for (let t = Math.max(0, seen[0] - 150); t < Math.min(T, seen[1] + 150); t++) {
      if (hits && !hits[t]) continue;
      const e = hits ? filter : data.first[l * T + t], at = parts[t][0].getClientRects()[0];
      ctx.fillText(e === NONE ? "–" : e, at.left + at.width / 2 - left, at.bottom + 3 - above);
    }
  }

  let chosen = -2; // the option that is marked as selected, -2 before the first paint
  function paintSelection() {
    const selected = get("selected");
    for (const [t, on] of [[chosen, false], [selected, true]]) {
      if (!options[t]) continue;
      put(options[t], "aria-selected", on);
      options[t].tabIndex = on ? 0 : -1;
    }
    options[0].tabIndex = selected < 1 ? 0 : -1; // the way in, where none is selected
    if (selected >= 0 && selected !== chosen) reveal(selected);
    chosen = selected;
  }

  function reveal(t) { // scrolls the text and the map, never the notebook
    const top = options[t].offsetTop - listbox.scrollTop, room = listbox.clientHeight;
    if (top < 8 || top > room - 36) listbox.scrollTop += top - room / 3;
    const x = t * cell.width - frame.scrollLeft, wide = frame.clientWidth - LEFT;
    if (x < 0 || x > wide - cell.width) frame.scrollLeft += x - wide / 2;
  }

  function paintToken() {
    const l = get("layer"), t = hover >= 0 ? hover : get("selected"), size = data.sizes[l];
    one.classList.toggle("empty", t < 0);
    if (t < 0) {
      say(sentence, "Click on a token");
      say(hint, "and see where every layer sends it, and what its router thought of each expert.");
      return;
    }
    say(sentence, describe(data, l, t, spell, 4));
    const rule = data.rule(l), unsure = rule.includes("unknown");
    say(hint, Number.isNaN(data.prob(l, t, 0))
      ? `× is the weight that an expert was given. Its score and probability are unknown${unsure ? ` (${rule})` : ""}.`
      : `Each expert’s score (logit), its probability (bar), and × the weight of those chosen.${rule && ` The choice: ${rule}.`}`);
    soon(paintPlaces);
    const pairs = new Map(data.pairs(l, t).map((p) => [p.expert, p]));
    gateRows.forEach(({ row, fill, score, value, weight }, e) => {
      row.hidden = e >= size;
      if (row.hidden) return;
      const p = data.prob(l, t, e), pair = pairs.get(e);
      const state = `bar e${e}${pair ? (pair.kept ? " chosen" : " dropped") : ""}`;
      if (row.className !== state) row.className = state;
      fill.style.width = `${(100 * (p || 0)) / data.maxProb}%`;
      say(score, scored(data.logit(l, t, e)));
      say(value, known(p, (x) => (x / 1000).toFixed(3)));
      say(weight, !pair ? "" : pair.kept ? `× ${pair.gate.toFixed(3)}` : "dropped");
    });
    steps.forEach(({ button, chips }, at) => {
      const way = data.pairs(at, t), shown = way.slice(0, 8);
      const key = `${t}:${get("frame")}`;
      if (chips.dataset.t !== key) {
        chips.dataset.t = key;
        chips.replaceChildren(...shown.map((p) => h(`span.chip.e${p.expert}${p.kept ? "" : ".dropped"}`, {}, String(p.expert))));
        if (!way.length) chips.append(h("span.chip.nothing", {}, "–"));
        if (way.length > shown.length) chips.append(h("span.quiet", {}, `+${way.length - shown.length}`));
        put(button, "aria-label", describe(data, at, t, voice, 8));
      }
      put(button, "aria-current", at === l);
      button.tabIndex = at === l ? 0 : -1;
    });
  }

  /** Says what was added to the scores, and where in the queues the token stands. */
  function paintPlaces() {
    const l = get("layer"), t = hover >= 0 ? hover : get("selected");
    if (t < 0) return;
    const list = Array.from({ length: data.sizes[l] }, (_, e) => [e, data.added(l, t, e)]).filter(([, words]) => words);
    say(added, list.length ? `In the choice: ${list.map(([e, words]) => `expert ${e} ${words}`).join("; ")}.` : "");
    const stand = (pair, at) => { const [place, length] = data.place(at, t, pair); return `${nth(place)} of ${length}${pair.kept ? "" : ", dropped"}`; };
    const places = data.pairs(l, t).map((pair) => `${stand(pair, l)} at expert ${pair.expert}`);
    say(queue, places.length ? `In the queues: ${places.join("; ")}.` : "");
    if (!numbersOfAll.open) return;
    table.replaceChildren(...data.names.flatMap((_, at) => data.pairs(at, t).map((pair, i) =>
      h(`tr${at === l ? ".here" : ""}`, {}, ...[i ? "" : String(at), String(pair.expert), pair.kept ? pair.gate.toFixed(3) : "dropped", scored(data.logit(at, t, pair.expert)), stand(pair, at)].map((cell) => h("td", {}, cell))))));
  }

  function announce() {
    const t = get("selected");
    say(announced, t < 0 ? "" : describe(data, get("layer"), t, voice, 8));
  }

  function paintLoad() {
    const l = get("layer"), size = data.sizes[l], filter = get("expert");
    say(loadTitle, `Load of layer ${l}`);
    const gone = data.dropped[l] ? ` ${data.dropped[l]} pairs were dropped.` : "";
    say(loadNote, `Each expert’s share of the (token, expert) pairs (bar), of the gates (thick mark), and its number of pairs; dashed: an equal share, ${percent(1 / size)}.${gone} Click an expert to see its tokens.`);
    const entry = clamp(filter, 0, size - 1);
    loadRows.forEach(({ row, fill, equal, mark, value, mass, count }, e) => {
      row.hidden = e >= size;
      if (row.hidden) return;
      const share = data.share(l, e);
      fill.style.width = `${(100 * share) / data.maxShare}%`;
      equal.style.left = `${100 / size / data.maxShare}%`;
      say(value, percent(share));
      mark.style.left = `${Math.min(100, (100 * data.mass(l, e)) / data.maxShare)}%`;
      say(mass, percent(data.mass(l, e)));
      say(count, `${data.load[l][e]}`);
      put(row, "aria-pressed", e === filter);
      row.tabIndex = e === entry ? 0 : -1;
    });
  }

  function paintFilter() {
    const e = get("expert"), l = get("layer");
    hits = e < 0 ? null : data.hits(l, e);
    const n = hits ? hits.reduce((n, hit) => n + (hit > 0), 0) : 0;
    say(status, hits ? `Expert ${e} got ${n} of ${T} tokens (${percent(n / T)})` : "");
    clear.hidden = !hits;
  }

  function paintLayer() {
    const l = get("layer");
    slider.value = l;
    put(slider, "aria-valuetext", `${l}, ${data.names[l]}`);
    say(layerNumber, String(l));
    say(layerName, `of 0–${L - 1}, ${data.names[l]}`);
  }

  // --- the map: only the columns in view are drawn
  const cell = { width: 2, height: 8 };
  function look() {
    const top = listbox.scrollTop, bottom = top + listbox.clientHeight;
    const at = (y) => { // the first token that begins below y
      let low = 0, high = T;
      while (low < high) { const mid = (low + high) >> 1; if (options[mid].offsetTop < y) low = mid + 1; else high = mid; }
      return low;
    };
    seen = listbox.scrollHeight > listbox.clientHeight + 4 ? [at(top), at(bottom - 10)] : [0, T];
  }

  function drawMap() {
    const width = frame.clientWidth;
    if (!width) return;
    const room = width - LEFT - 1;
    cell.width = clamp(room / T, 2, 24);
    cell.height = clamp(Math.floor(230 / L), 7, 22);
    const top = 8, bottom = top + L * cell.height, height = bottom + 18;
    spacer.style.width = cell.width * T > room + 1 ? `${LEFT + cell.width * T + 1}px` : "100%";
    const scrolls = frame.scrollWidth > frame.clientWidth;
    if (scrolls) frame.tabIndex = 0; else frame.removeAttribute("tabindex");
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const style = getComputedStyle(root), ctx = sheet(canvas, width, height);
    const strong = style.color, quiet = style.getPropertyValue("--quiet");
    const x = (t) => LEFT + t * cell.width - frame.scrollLeft, y = (l) => top + l * cell.height;
    const from = Math.max(0, Math.floor(frame.scrollLeft / cell.width));
    const to = Math.min(T, Math.ceil((frame.scrollLeft + room) / cell.width));
    const l0 = get("layer"), t0 = get("selected"), gap = cell.height > 9 ? 1 : 0, split = cell.width > 5 ? 1 : 0;
    const print = cell.width >= 13 && cell.height >= 12;
    ctx.font = `11px ${style.fontFamily}`;
    ctx.textBaseline = "middle";
    ctx.textAlign = "center";
    ctx.save();
    ctx.beginPath();
    ctx.rect(LEFT, 0, room + 1, height);
    ctx.clip();
    for (let t = from; t < to; t++) {
      ctx.globalAlpha = hits && !hits[t] ? 0.13 : 1;
      for (let l = 0; l < L; l++) {
        const e = hits?.[t] && l === l0 ? get("expert") : data.first[l * T + t];
        if (e === NONE) {
          if (cell.width < 5) continue;
          ctx.fillStyle = quiet;
          ctx.fillRect(x(t) + cell.width / 2 - 1, y(l) + cell.height / 2 - 1, 2, 2);
          continue;
        }
        ctx.fillStyle = data.colors[e];
        ctx.fillRect(x(t), y(l), cell.width - split, cell.height - gap);
        if (moved(l * T + t)) {
          ctx.lineWidth = 2;
          ctx.strokeStyle = strong;
          ctx.strokeRect(x(t) + 1, y(l) + 1, Math.max(1, cell.width - split - 2), cell.height - gap - 2);
        }
        if (print) {
          ctx.fillStyle = inks[e];
          ctx.fillText(e, x(t) + (cell.width - split) / 2, y(l) + (cell.height - gap) / 2 + 1, cell.width);
        }
      }
    }
    ctx.globalAlpha = 1;
    ctx.strokeStyle = ctx.fillStyle = strong;
    const mark = (t, thick) => { // a column
      ctx.lineWidth = thick;
      ctx.strokeRect(x(t) - 1, top - 1, Math.max(cell.width, 3) + 1, L * cell.height + 1);
    };
    if (hover >= 0) mark(hover, 1);
    if (t0 >= 0) mark(t0, 1.5);
    ctx.lineWidth = 2;
    ctx.strokeRect(x(0) - 1, y(l0) - 1, cell.width * T + 2 - split, cell.height + 2 - gap);
    if (seen[0] > 0 || seen[1] < T) ctx.fillRect(x(seen[0]), 1, (seen[1] - seen[0]) * cell.width, 3);
    ctx.fillStyle = quiet;
    const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((n) => n * cell.width >= 40) ?? 2000;
    for (let t = Math.ceil(from / every) * every; t < to; t += every) {
      ctx.textAlign = t === 0 ? "left" : "center";
      ctx.fillText(t, x(t) + (t === 0 ? 0 : cell.width / 2), bottom + 10);
    }
    ctx.restore();
    ctx.textAlign = "right";
    const skip = Math.ceil(12 / cell.height);
    for (let l = 0; l < L; l++) {
      if (l !== l0 && (l % skip || (skip > 1 && Math.abs(l - l0) < skip))) continue;
      ctx.fillStyle = l === l0 ? strong : quiet;
      ctx.font = `${l === l0 ? "bold 12px" : "11px"} ${style.fontFamily}`;
      ctx.fillText(l, LEFT - 6, y(l) + cell.height / 2);
    }
  }
  const inks = data.colors.map(inkOn);

  // Dark is what the host says it is: read from the ink that its theme gives.
  function theme() {
    const [r, g, b] = (getComputedStyle(root).color.match(/[\d.]+/g) ?? [0, 0, 0]).map(Number);
    root.classList.toggle("dark", r + g + b > 384);
    soon(drawNumbers);
    soon(drawMap);
  }

  // --- listening --------------------------------------------------------------------------------

  const changed = {
    layer: () => { paintLayer(); paintFilter(); paintText(); paintToken(); paintLoad(); soon(drawMap); announce(); asked?.offer(); },
    selected: () => { paintSelection(); paintToken(); soon(drawMap); announce(); asked?.follow(); asked?.paint(); },
    expert: () => { paintFilter(); paintText(); paintLoad(); soon(drawMap); },
    frame: () => { Object.assign(data, unpack(model)); tied.follow(); changed.layer(); },
    problem: () => say(problem, get("problem") ?? ""),
  };
  for (const key of ["question", "answer", "answers"]) changed[key] = () => asked?.paint();

  const point = (t) => { if (t !== hover) { hover = t; soon(paintToken); soon(drawMap); } };
  const under = (event) => { const tok = event.target.closest?.(".tok"); return tok ? Number(tok.dataset.t) : -1; };
  on(slider, "input", () => set({ layer: Number(slider.value) }));
  on(run, "click", () => set({ text: own.value }));
  on(numbersOfAll, "toggle", paintToken);
  on(numbers, "change", () => soon(drawNumbers));
  on(clear, "click", () => { set({ expert: -1 }); slider.focus(); });
  on(listbox, "mouseover", (event) => point(under(event)));
  on(listbox, "mouseleave", () => point(-1));
  on(listbox, "click", (event) => { if (under(event) >= 0) set({ selected: under(event) }); });
  on(listbox, "scroll", () => { look(); paintTokens(seen[0] - 40, seen[1] + 40); soon(drawNumbers); soon(drawMap); }, { passive: true });
  on(frame, "scroll", () => soon(drawMap), { passive: true });
  const spot = (event) => {
    const box = canvas.getBoundingClientRect();
    const t = Math.floor((event.clientX - box.left - LEFT + frame.scrollLeft) / cell.width);
    const l = Math.floor((event.clientY - box.top - 8) / cell.height);
    return event.clientX - box.left >= LEFT && t < T && l >= 0 && l < L ? { t, l } : null;
  };
  on(canvas, "mousemove", (event) => point(spot(event)?.t ?? -1));
  on(canvas, "mouseleave", () => point(-1));
  on(canvas, "click", (event) => { const at = spot(event); if (at) set({ selected: at.t, layer: at.l }); });

  /** The nearest token of the line above (-1) or below (+1). */
  function neighbour(t, direction) {
    const away = (i) => parts[i][0].getClientRects()[0], here = away(t);
    let best = t, bestGap = Infinity, line = null;
    for (let i = t + direction; i >= 0 && i < T; i += direction) {
      const box = away(i), y = box.top;
      if (Math.abs(y - here.top) < here.height / 2) continue;
      if (line !== null && Math.abs(y - line) > here.height / 2) break;
      line ??= y;
      const gap = Math.abs(box.left + box.width / 2 - here.left - here.width / 2);
      if (gap < bestGap) [best, bestGap] = [i, gap];
    }
    return best;
  }

  let typed = "", typedAt = 0;
  function press(event) {
    const { key, target } = event, l = get("layer");
    if (event.ctrlKey || event.metaKey || event.altKey || target.closest("select, textarea, summary, .guess")) return false;
    if (/^\d$/.test(key)) { // two digits typed together make one number
      typed = event.timeStamp - typedAt < 900 ? typed + key : key;
      if (Number(typed) >= data.sizes[l]) typed = key;
      typedAt = event.timeStamp;
      if (Number(typed) < data.sizes[l]) set({ expert: Number(typed) });
      return true;
    }
    if (key === "Escape") {
      if (get("expert") >= 0) set({ expert: -1 });
      else if (get("selected") >= 0) set({ selected: -1 });
      else return false;
      return true;
    }
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[key];
    if (event.shiftKey && /^Arrow(Up|Down)$/.test(key)) {
      set({ layer: clamp(l + step, 0, L - 1) });
      return true;
    }
    if (listbox.contains(target) && target !== listbox) {
      const t = Number(target.closest(".tok").dataset.t);
      const to = { ArrowRight: () => t + 1, ArrowLeft: () => t - 1, ArrowDown: () => neighbour(t, 1), ArrowUp: () => neighbour(t, -1), Home: () => 0, End: () => T - 1, Enter: () => t, " ": () => t }[key];
      if (!to || event.shiftKey) return false;
      const next = clamp(get("selected") < 0 && step ? t : to(), 0, T - 1);
      hover = -1;
      set({ selected: next });
      options[next].focus({ preventScroll: true });
      return true;
    }
    if (strip.contains(target) && step) {
      set({ layer: clamp(l + step, 0, L - 1) });
      steps[get("layer")].button.focus();
      return true;
    }
    if (loads.contains(target) && step) {
      const e = loadRows.findIndex((r) => r.row.contains(target));
      loadRows[clamp(e + step, 0, data.sizes[l] - 1)].row.focus();
      return true;
    }
    return false;
  }
  on(root, "keydown", (event) => { if (press(event)) event.preventDefault(); });

  // The first report comes when the page has been laid out, and so has its colours: a host may
  // call render before that.
  const resized = new ResizeObserver(() => { theme(); look(); });
  resized.observe(frame);
  resized.observe(listbox);
  atEnd(() => resized.disconnect());
  onTheme(root, theme);

  tied.follow();
  changed.layer();
  changed.problem();
  paintSelection();
  asked?.paint();
  theme();

  return live(root, changed);
}

// ------------------------------------------------------------------------------------- what if

const DOES = {
  ablate: "ablate: what it adds is left out",
  ban: "ban: the router takes its next best",
  force: "force: it takes the last choice’s place",
  swap: "swap: its tokens go to another, and back",
  top_k: "change k: another number of experts",
  scale: "scale: its gate is multiplied", // the live page alone can
};

function wording([kind, layer, expert, other, k, tokens], data) {
  const what = kind === "swap" ? `swap experts ${expert} and ${other}` : kind === "top_k" ? `${k} expert${k === 1 ? "" : "s"} per token` : kind === "scale" ? `${k} × the gate of expert ${expert}` : `${kind} expert ${expert}`;
  const whom = !tokens ? "all tokens" : tokens.length === 1 ? `token ${tokens[0]} “${spell(data.tokens[tokens[0]] ?? "")}”` : `${tokens.length} tokens`;
  return `${what} in ${layer === null ? "every layer" : `layer ${layer}`}, for ${whom}`;
}

/** The panel that asks: what the model says next, and what would be different. */
function asking(data, root, { get, set, on, soon }) {
  const { T } = data, live = get("live"), base = get("answers")["[]"], top = base.top;
  const read = (answer) => new Uint16Array(cut(answer.data));
  const plain = read(base);
  const was = { word: (t, i) => base.words[plain[t * top + i]], share: (t, i) => plain[(T + t) * top + i] / 65535, loss: (t) => plain[2 * T * top + t] };
  /** What an answer says of a token; it begins where the first change is. */
  const changes = (answer) => {
    const value = read(answer), { first } = answer, n = T - first;
    const column = (name, t) => value[n * (top + name) + t - first];
    return {
      share: (t, i) => (t < first ? was.share(t, i) : value[(t - first) * top + i] / 65535),
      best: (t) => t >= first && { word: answer.words[column(0, t)], before: column(1, t) / 65535, after: column(2, t) / 65535 },
      loss: (t) => (t < first ? was.loss(t) : column(3, t)),
    };
  };
  const choice = (label, options, kept = false) => {
    const select = h(kept ? "select.kept" : "select", {}, ...options.map(([value, text]) => h("option", { value }, text)));
    return { select, label: h("label", {}, `${label} `, select), get value() { return select.value; } };
  };
  const experts = Array.from({ length: data.E }, (_, e) => [e, String(e)]);
  const kind = choice("… you", Object.entries(DOES).filter(([is]) => is !== "scale" || get("typing")), true), expert = choice("expert", experts), other = choice("with", experts);
  const k = choice("k", experts.map(([e]) => [e + 1, String(e + 1)])), factor = choice("by", [0.25, 0.5, 2, 4, 8].map((x) => [x, `× ${x}`])), where = choice("in", [["here", ""], ["all", "every layer"]], true);
  const whom = choice("for", [["one", "this token"], ["all", "all tokens"]], true), stored = choice("… you", [["", ""]]);
  const ask = h("button.act", { type: "button" }, "Ask"), also = h("button.act", { type: "button" }, "And also"), undo = h("button.act", { type: "button" }, "Leave it untouched");
  const asked = h("p.asked", { role: "status" }), title = h("h3"), legend = h("p.quiet", {}, "Hatched: untouched. Solid: changed."), rows = h("ul.next"), lossTitle = h("h3"), loss = h("p"), canvas = h("canvas", { role: "img" });
  const goesOn = h("div.on"), note = h("p.quiet");
  const losses = h("div", {}, lossTitle, loss, canvas);
  const panel = h("section.panel.ask", { "aria-label": "What if" }, h("h2", {}, "What if …"),
    h("div.form", {}, ...(live ? [kind.label, expert.label, other.label, k.label, factor.label, where.label, whom.label, ask, also] : [stored.label]), undo),
    note, asked, h("div.answers", {}, h("div", {}, title, legend, rows), losses, goesOn));
  const now = () => (get("selected") >= 0 ? get("selected") : T - 1);

  /** The question that the form spells; its layer is the one that is shown. */
  const spelled = () => {
    const is = kind.value, tokens = whom.value === "one" ? [now()] : null;
    return [is, is === "top_k" && where.value === "all" ? null : get("layer"), is === "top_k" ? -1 : Number(expert.value),
      is === "swap" ? Number(other.value) : -1, is === "top_k" ? Number(k.value) : is === "scale" ? Number(factor.value) : 0, tokens];
  };
  function offer() { // follows the token and the layer
    const l = get("layer"), size = data.sizes[l];
    if (!live) {
      const questions = Object.keys(get("answers")).filter((key) => key !== "[]").map((key) => [key, JSON.parse(key)])
        .filter(([, question]) => question.every((i) => i[1] === null || i[1] === l));
      stored.select.replaceChildren(h("option", { value: "[]" }, "changed nothing"), ...questions.map(([key, question]) => h("option", { value: key }, question.map((i) => wording(i, data)).join("; "))));
      stored.select.value = JSON.stringify(get("question"));
      say(note, `This page has no model behind it: ${Object.keys(get("answers")).length - 1} answers came along, here those for layer ${l}.`);
      return;
    }
    const own = data.pairs(l, now()).map((pair) => pair.expert);
    for (const { select } of [expert, other])
      [...select.options].forEach((option, e) => { option.hidden = option.disabled = e >= size; say(option, own.includes(e) ? `${e} (its ${nth(own.indexOf(e) + 1)})` : String(e)); });
    if (own.length) expert.select.value = own[0];
    if (own.length > 1) other.select.value = own[1];
    say(where.select.options[0], `layer ${l}`);
    shape();
  }
  function shape() {
    const is = kind.value;
    expert.label.hidden = is === "top_k";
    other.label.hidden = is !== "swap";
    k.label.hidden = is !== "top_k";
    factor.label.hidden = is !== "scale";
    [...where.select.options][1].hidden = is !== "top_k";
    if (is !== "top_k") where.select.value = "here";
    say(whom.select.options[0], `token ${now()}, “${spell(data.tokens[now()])}”`);
  }

  function paint() {
    const question = get("question"), key = JSON.stringify(question), latest = get("answer");
    const answer = !question.length ? null : latest?.key === key ? latest : get("answers")[key];
    const t = now(), is = answer?.data ? changes(answer) : null;
    undo.disabled = !question.length;
    if (!live) stored.select.value = key;
    const asks = question.map((i) => wording(i, data)).join("; and ");
    const state = answer?.error ? ` This cannot be done: ${answer.error}.` : answer ? ` ${answer.moved} of ${T * data.L} first choices change.` : live ? " The model is being asked …" : " No answer to this came along.";
    say(asked, question.length ? `${asks[0].toUpperCase()}${asks.slice(1)}.${state}` : "");
    panel.setAttribute("aria-busy", String(Boolean(live && question.length && !answer)));
    // The next token: the likeliest as it was and, if it is another, as it is now.
    const next = Array.from({ length: top }, (_, i) => ({ word: was.word(t, i), before: was.share(t, i), after: is?.share(t, i) }));
    const best = is?.best(t);
    if (best && !next.some((row) => row.word === best.word)) next.push(best);
    say(title, `Next after “${spell(data.tokens[t])}” (token ${t})`);
    const most = Math.max(...next.map((row) => Math.max(row.before, row.after ?? 0)), 1e-6);
    rows.replaceChildren(...next.map(({ word, before, after }) => {
      const bars = [before, ...(is ? [after] : [])].map((share, i) => {
        const bar = h(i ? "i.is" : "i.was");
        bar.style.width = `${(100 * share) / most}%`;
        return bar;
      });
      return h("li", {}, h("b", {}, spell(word)), h("span.two", {}, ...bars), h("span", {}, is ? `${percent(before)} → ${percent(after)}` : percent(before)));
    }));
    legend.hidden = !is;
    paintLoss(t, is);
    goesOn.replaceChildren();
    if (answer?.next) {
      const [at, old, now] = answer.next.map((text) => text.replace?.(/\n/g, "↵") ?? text);
      let same = 0;
      while (same < Math.min(old.length, now.length) && old[same] === now[same]) same++;
      const line = (name, text) => h("p", {}, h("span.quiet", {}, `${name} `), h("span.made", {}, text.slice(0, same), ...(same < text.length && old !== now ? [h("mark", {}, text.slice(same))] : [])));
      goesOn.append(h("h3", {}, `Going on after token ${at}, the likeliest each time`), ...(old === now ? [line("untouched and changed alike", now)] : [line("untouched", old), line("changed", now)]));
    }
  }

  function paintLoss(t, value) {
    const list = [];
    for (let u = 1; u < T; u++) {
      const before = was.loss(u) / 1000, after = value ? value.loss(u) / 1000 : before;
      list.push({ u, before, after, rise: after - before });
    }
    const after = list.filter(({ u }) => u > t), mean = (rows, name) => sum(rows.map((row) => row[name])) / rows.length;
    const figures = (rows) => (value ? `${mean(rows, "before").toFixed(3)} → ${mean(rows, "after").toFixed(3)} nats (${signed(mean(rows, "after") - mean(rows, "before"), 3)})` : `${mean(rows, "before").toFixed(3)} nats`);
    say(lossTitle, after.length ? `Loss of the ${after.length === 1 ? "token" : `${after.length} tokens`} after it` : "Loss");
    const named = [...after].sort((a, b) => Math.abs(b.rise) - Math.abs(a.rise)).slice(0, 3).filter(({ rise }) => Math.abs(rise) >= 0.001);
    const words = [after.length ? `Mean ${figures(after)}.` : "No token follows it: choose an earlier one."];
    if (value && named.length) words.push(`Most: ${named.map(({ u, rise }) => `“${spell(data.tokens[u])}” ${signed(rise, 3)}`).join(", ")}.`);
    if (list.length > after.length) words.push(`Whole text: ${figures(list)}.`);
    say(loss, words.join(" "));
    canvas.hidden = !value || !named.length;
    drawn = { after, most: Math.abs(named[0]?.rise ?? 0) };
    if (!canvas.hidden) soon(drawLoss);
  }

  let drawn;
  function drawLoss() {
    const { after, most } = drawn;
    const width = losses.clientWidth || 300, height = 64, style = getComputedStyle(root), ctx = sheet(canvas, width, height);
    const step = Math.max(width / after.length, 1), wide = clamp(step - 1, 1, 14);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    put(canvas, "aria-label", `By how much the loss of each following token changed, at most ${most.toFixed(3)} nats: up and filled is a rise, down and hollow a fall.`);
    canvas.title = canvas.getAttribute("aria-label");
    ctx.fillStyle = ctx.strokeStyle = style.color;
    ctx.fillRect(0, height / 2, width, 1);
    after.forEach(({ rise }, i) => {
      const tall = (Math.abs(rise) / most) * (height / 2 - 2);
      if (rise > 0) ctx.fillRect(i * step, height / 2 - tall, Math.min(wide, step), tall);
      else if (rise < 0) ctx.strokeRect(i * step + 0.5, height / 2 + 0.5, Math.max(0.5, Math.min(wide, step) - 1), tall);
    });
  }

  on(ask, "click", () => set({ question: [spelled()] }));
  on(also, "click", () => set({ question: [...get("question"), spelled()] }));
  on(undo, "click", () => { set({ question: [] }); offer(); });
  on(stored.select, "change", () => set({ question: JSON.parse(stored.value) }));
  for (const type of ["change", "kept"]) on(kind.select, type, shape);
  offer();
  return { panel, offer, paint, follow: () => live && offer() };
}

// ------------------------------------------------------------------------------------ comparing

/** The second of two: it has its own trace, and follows the first one's layer and filter; and its
 *  selection too, where the text is the same. */
function second(model) {
  const own = model.get("beside"), L = own.layer_names.length, E = Math.max(...own.num_experts);
  const alike = JSON.stringify(own.tokens) === JSON.stringify(model.get("tokens"));
  const listeners = new Set(), mine = (key) => key === "selected" && !alike;
  let selected = -1;
  const shared = {
    layer: () => Math.min(model.get("layer"), L - 1),
    expert: () => (model.get("expert") < E ? model.get("expert") : -1),
    selected: () => (alike ? model.get("selected") : selected),
  };
  const shape = (each) => JSON.stringify([each.layer_names, each.num_experts]);
  return {
    other: () => alike && shape(own) === shape({ layer_names: model.get("layer_names"), num_experts: model.get("num_experts") }) && unpack(model),
    get: (key) => (key in own ? own[key] : shared[key]?.()),
    set(key, value) {
      if (!mine(key)) return model.set(key, value);
      selected = value;
      for (const listener of [...listeners]) listener();
    },
    on: (event, act) => (mine(event.slice(7)) ? listeners.add(act) : event.slice(7) in shared && model.on(event, act)),
    off: (event, act) => (mine(event.slice(7)) ? listeners.delete(act) : event.slice(7) in shared && model.off(event, act)),
    save_changes: () => model.save_changes(),
  };
}

/** What a reader chose in el's controls, and where the focus is: gives what puts it back into those
 *  that are built anew. */
function keep(el) {
  const controls = () => [...el.querySelectorAll("button, select, input")], tokens = () => [...el.querySelectorAll("[role=option]")];
  const chosen = controls().map(({ value, checked }) => ({ value, checked }));
  const [at, token] = [controls(), tokens()].map((list) => list.indexOf(document.activeElement));
  return () => {
    const now = controls();
    if (now.length === chosen.length) now.forEach((control, i) => {
      if (control.type === "checkbox") control.checked = chosen[i].checked;
      else if (control.matches(".kept") && [...control.options].some((option) => option.value === chosen[i].value)) control.value = chosen[i].value;
      control.dispatchEvent(new Event("kept"));
    });
    (now[at] ?? tokens()[token])?.focus({ preventScroll: true });
  };
}

/** Draws the widget into el, each side again whenever another trace arrives for it; returns what
 *  takes it away. */
function render({ model, el }) {
  const pair = h("div.moe-pair"), labels = [h("p.which"), h("p.which")], ends = [], due = new Set();
  const sides = labels.map((label) => h("div", {}, label)), two = () => Boolean(model.get("beside")?.tokens);
  let gone = false;
  el.append(pair);
  function draw(i) {
    const again = keep(sides[i]);
    ends[i]?.();
    ends[i] = null;
    if (i && !two()) sides[1].remove();
    else {
      if (!sides[i].parentNode) pair.append(sides[i]);
      ends[i] = build(i ? second(model) : model, sides[i], two() ? [", first", ", second"][i] : "");
      again();
    }
    pair.classList.toggle("two", two());
    labels.forEach((label, n) => {
      label.hidden = !two();
      if (!two()) return sides[n].removeAttribute("role");
      const { source, tokens } = n ? model.get("beside") : { source: model.get("source"), tokens: model.get("tokens") };
      const begin = tokens.slice(0, 16).join("").replace(new RegExp(BYTES, "g"), (bytes) => decoded(bytes) ?? bytes);
      say(label, `${source}: “${begin.trim()}${tokens.length > 16 ? " …" : ""}”`);
      attr(sides[n], { role: "region", "aria-label": n ? "Second" : "First" });
    });
  }
  const rebuild = (i) => () => { // tokens and data change together: build once
    if (!due.size) queueMicrotask(() => { for (const n of due) if (!gone) draw(n); due.clear(); });
    due.add(i);
  };
  const changes = [...["data", "tokens", "film"].map((key) => [`change:${key}`, rebuild(0)]), ["change:beside", rebuild(1)]];
  for (const [event, act] of changes) model.on(event, act);
  for (const i of [0, 1]) draw(i);
  return () => {
    gone = true;
    for (const [event, act] of changes) model.off(event, act);
    for (const end of ends) end?.();
    pair.remove();
  };
}

export default { render };
