// The routing explorer. Python sends a trace once, as lists and one block of typed arrays; from
// then on three numbers travel either way: `selected` (a token, -1 none), `layer`, and `expert`
// (a filter, -1 none). Each panel builds its elements once and later changes only what differs.

const NONE = 0xffff; // the first expert of a token that reached none
const ARRAYS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array };
const LEFT = 30; // pixels for the layer numbers beside the map
const MANY = 16; // above this number of experts, bars stand in columns

/** Makes an element; text goes in as text nodes, so no token is ever read as markup. */
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

/** Changes a text or an attribute only if it differs: the browser then has nothing to redo. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
function put(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const percent = (share) => `${(100 * share).toFixed(1)}%`;

/** Spells a token on one line, its white space visible. */
const spell = (text) =>
  text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";

/** Spells a token for a voice. */
const voice = (text) =>
  text.trim() || (text.includes("\n") ? "line break" : text.includes("\t") ? "tab" : text ? "space" : "empty");

// ------------------------------------------------------------------------------------ the data

function unpack(model) {
  const block = model.get("data"); // a DataView, at any offset: copied, so that arrays align
  const bytes = new Uint8Array(block.buffer, block.byteOffset, block.byteLength).slice();
  const array = {};
  for (const [name, [type, offset, length]] of Object.entries(model.get("arrays")))
    array[name] = new ARRAYS[type](bytes.buffer, offset, length);

  const tokens = model.get("tokens"), names = model.get("layer_names");
  const sizes = model.get("num_experts"), T = tokens.length, L = names.length;
  const { start, expert, gate, keep, probs } = array;
  const first = new Uint16Array(L * T).fill(NONE); // where the token went: gives the colour
  const depth = new Uint8Array(L * T); // 0..4: how much of its weight went there: the tint
  const lost = new Uint8Array(L * T); // how many of its pairs were dropped
  const load = sizes.map((E) => new Uint32Array(E));
  const kept = new Uint32Array(L), dropped = new Uint32Array(L);
  for (let l = 0, row = 0; l < L; l++) {
    for (let t = 0; t < T; t++, row++) {
      let n = 0, sum = 0, top = 0;
      for (let i = start[row]; i < start[row + 1]; i++) {
        if (!keep[i]) { lost[row]++; dropped[l]++; continue; }
        if (n++ === 0) { first[row] = expert[i]; top = gate[i]; }
        sum += gate[i];
        load[l][expert[i]]++;
      }
      kept[l] += n;
      depth[row] = n > 1 && sum > 0 ? Math.round(4 * clamp((top / sum - 1 / n) / (1 - 1 / n), 0, 1)) : 4;
    }
  }
  const base = sizes.map((_, l) => T * sizes.slice(0, l).reduce((a, b) => a + b, 0));
  const share = (l, e) => load[l][e] / Math.max(1, kept[l]);
  return {
    T, L, E: Math.max(...sizes), tokens, names, sizes, first, depth, lost, load, dropped, share,
    colors: model.get("colors"),
    prob: (l, t, e) => probs[base[l] + t * sizes[l] + e], // in thousandths
    pairs: (l, t) => {
      const row = l * T + t, list = [];
      for (let i = start[row]; i < start[row + 1]; i++)
        list.push({ expert: expert[i], gate: gate[i], kept: keep[i] === 1 });
      return list;
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
    // One scale for all tokens and layers, so that bars may be compared while stepping.
    maxProb: Math.max(1, probs.reduce((a, b) => Math.max(a, b), 0)),
    maxShare: Math.max(...sizes.map((E, l) => Math.max(1.5 / E, ...Array.from({ length: E }, (_, e) => share(l, e))))),
  };
}

/** Says in a sentence where a layer sends a token. */
function describe(data, l, t, name, most) {
  const pairs = data.pairs(l, t), kept = pairs.filter((p) => p.kept), gone = pairs.filter((p) => !p.kept);
  const list = kept.slice(0, most).map((p) => `expert ${p.expert} with ${p.gate.toFixed(2)}`);
  if (kept.length > most) list.push(`and ${kept.length - most} more`);
  if (gone.length) list.push(`dropped by ${gone.map((p) => `expert ${p.expert}`).join(" and ")}, which was full`);
  if (!pairs.length) list.push("no expert took it");
  return `Token “${name(data.tokens[t])}”, layer ${l}: ${list.join(", ")}.`;
}

// ---------------------------------------------------------------------------------- the colours

const rgb = (color) => [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));

/** Black or white, whichever can be read on a colour: one of them always has contrast 4.5. */
function ink(color) {
  const [r, g, b] = rgb(color).map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}

/** The rules of each expert: e5 gives bars and chips its colour, t5 a token its tint. A token's
 *  rules set only what moves nothing and no child inherits: recolouring a text is then cheap. */
const rules = (colors) =>
  colors.map((color, e) => {
    const c = rgb(color).join(" ");
    return `.moe .e${e}{--c:${c};--on:${ink(color)}}.moe .tok>.t${e}{border-color:rgb(${c})}` +
      [0, 1, 2, 3, 4].map((w) => `.moe .t${e}.w${w}{background-color:rgb(${c}/var(--w${w}))}`).join("") +
      `.moe [aria-selected="true"]>.t${e}{background-color:rgb(${c});color:${ink(color)}}`;
  }).join("\n");

// ----------------------------------------------------------------------------------- the tokens

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

function build(model, el) {
  const data = unpack(model), { T, L, E } = data;
  const stop = new AbortController(), { signal } = stop;
  const get = (key) => model.get(key);
  const set = (changes) => {
    for (const [key, value] of Object.entries(changes)) model.set(key, value);
    model.save_changes();
  };
  const id = `moe-${Math.random().toString(36).slice(2)}`;
  let hover = -1, hits = null;

  // --- controls
  const slider = h("input", { type: "range", min: 0, max: L - 1, step: 1, disabled: L === 1 });
  const layerNumber = h("output"), layerName = h("span.quiet");
  const numbers = h("input", { type: "checkbox", checked: true });
  const status = h("span.status", { role: "status" });
  const clear = h("button", { type: "button", hidden: true }, "Show all");
  const controls = h("div.controls", {},
    h("label.layer", {}, "Layer ", slider, layerNumber), layerName,
    h("span.filter", {}, status, clear),
    h("label", {}, numbers, " expert numbers"));

  // --- the text
  const options = data.tokens.map(option), parts = options.map((o) => o.querySelectorAll("b"));
  const listbox = h("div.tokens", { role: "listbox", "aria-labelledby": `${id}-text`, "aria-orientation": "horizontal" }, ...options);
  const legend = h("p.quiet");
  const digits = h("canvas.numbers", { "aria-hidden": "true" });
  listbox.append(digits);
  const text = h("section.panel.text", {},
    h("h2", { id: `${id}-text` }, "Text"),
    legend, listbox);

  // --- one token
  const sentence = h("h2"), hint = h("p.quiet"), announced = h("div.unseen", { "aria-live": "polite" });
  const bars = h("ul.bars"), gateRows = [], strip = h("div.strip", { role: "group", "aria-label": "The token's experts, layer by layer" });
  for (let e = 0; e < E; e++) {
    const fill = h("i"), value = h("span.value"), weight = h("span.weight");
    gateRows.push({ fill, value, weight, row: h(`li.bar.e${e}`, {}, h("span.chip", {}, h("span.unseen", {}, "expert "), String(e)), h("span.track", {}, fill), value, weight) });
  }
  bars.append(...gateRows.map((r) => r.row));
  const steps = data.names.map((_, l) => {
    const chips = h("span.chips"), button = h("button", { type: "button", tabIndex: -1 }, h("span.quiet", {}, String(l)), chips);
    button.addEventListener("click", () => set({ layer: l }), { signal });
    return { button, chips };
  });
  strip.append(...steps.map((s) => s.button));
  const way = h("div.way", {}, h("h3", {}, "Its experts in every layer"), strip);
  const one = h("section.panel.one", { "aria-label": "One token" }, sentence, hint, bars, way, announced);

  // --- load
  const loads = h("div.bars", { role: "group", "aria-label": "Load of each expert; press one to see its tokens" }), loadRows = [];
  const loadTitle = h("h2"), loadNote = h("p.quiet");
  for (let e = 0; e < E; e++) {
    const fill = h("i"), equal = h("u"), value = h("span.value"), count = h("span.count");
    const row = h(`button.bar.e${e}`, { type: "button", "aria-pressed": "false", tabIndex: e ? -1 : 0 },
      h("span.chip", {}, h("span.unseen", {}, "expert "), String(e)), h("span.track", {}, fill, equal), value, count);
    row.addEventListener("click", () => set({ expert: get("expert") === e ? -1 : e }), { signal });
    loadRows.push({ row, fill, equal, value, count });
  }
  loads.append(...loadRows.map((r) => r.row));
  const load = h("section.panel.load", {}, loadTitle, loadNote, loads);

  // --- map
  const canvas = h("canvas"), spacer = h("div.spacer", {}, canvas);
  const frame = h("div.frame", { role: "group", "aria-label": `Map of ${L} layers by ${T} tokens; the text and the layer control reach the same cells by keyboard` }, spacer);
  const map = h("section.panel.map", {},
    h("h2", {}, "Every layer, every token"),
    h("p.quiet", {}, "A row is a layer, a column a token; click a cell. Expert 3 of one layer and expert 3 of another are two networks: compare colours along a row."),
    frame);

  const help = h("p.quiet.help");
  for (const [keys, does] of [["← →", "token"], ["↑ ↓", "line"], ["Shift ↑ ↓", "layer"], ["Home End", "first, last"], [E > 10 ? "0–9 0–9" : E > 1 ? `0–${E - 1}` : "0", "one expert’s tokens"], ["Esc", "clear"]])
    help.append(h("kbd", {}, keys), ` ${does}  `);

  const root = h(`div.moe${E > MANY ? ".many" : ""}${E > 10 ? ".tens" : ""}`, {}, h("style", {}, rules(data.colors)), h("div.grid", {}, controls, text, one, map, load, help));
  el.append(root);

  // --- painting ---------------------------------------------------------------------------------

  function paintText() {
    const filter = get("expert");
    say(legend, filter < 0
      ? "Colour and number: the first expert that the token reached in this layer. The stronger the tint, the more of its weight went there."
      : `Marked: what expert ${filter} got in this layer, as first choice or later. The stronger the tint, the more of the token’s weight.`);
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
    const width = listbox.clientWidth, room = listbox.clientHeight, scale = window.devicePixelRatio || 1;
    const top = Math.max(0, listbox.scrollTop - room / 2), height = Math.min(2 * room, listbox.scrollHeight - top);
    digits.hidden = !numbers.checked;
    if (!width || !room || digits.hidden) return;
    digits.style.top = `${top}px`;
    digits.style.width = `${width}px`;
    digits.style.height = `${height}px`;
    digits.width = Math.round(width * scale); // which also clears it
    digits.height = Math.round(height * scale);
    const style = getComputedStyle(root), ctx = digits.getContext("2d"), filter = get("expert"), l = get("layer");
    ctx.scale(scale, scale);
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
    say(sentence, describe(data, l, t, spell, 3));
    say(hint, "Bar: the router’s probability of each expert.  ×: the weight of an expert that was chosen.");
    const pairs = new Map(data.pairs(l, t).map((p) => [p.expert, p]));
    gateRows.forEach(({ row, fill, value, weight }, e) => {
      row.hidden = e >= size;
      if (row.hidden) return;
      const p = data.prob(l, t, e), pair = pairs.get(e);
      const state = `bar e${e}${pair ? (pair.kept ? " chosen" : " dropped") : ""}`;
      if (row.className !== state) row.className = state;
      fill.style.width = `${(100 * p) / data.maxProb}%`;
      say(value, (p / 1000).toFixed(3));
      say(weight, !pair ? "" : pair.kept ? `× ${pair.gate.toFixed(3)}` : "dropped");
    });
    steps.forEach(({ button, chips }, at) => {
      const way = data.pairs(at, t), shown = way.slice(0, 8);
      const key = `${t}`;
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

  function announce() {
    const t = get("selected");
    say(announced, t < 0 ? "" : describe(data, get("layer"), t, voice, 8));
  }

  function paintLoad() {
    const l = get("layer"), size = data.sizes[l], filter = get("expert");
    say(loadTitle, `Load of layer ${l}`);
    const gone = data.dropped[l] ? ` ${data.dropped[l]} pairs were dropped.` : "";
    say(loadNote, `Each expert’s share of the (token, expert) pairs, and their number; dashed: an equal share, ${percent(1 / size)}.${gone} Click an expert to see its tokens.`);
    const entry = clamp(filter, 0, size - 1);
    loadRows.forEach(({ row, fill, equal, value, count }, e) => {
      row.hidden = e >= size;
      if (row.hidden) return;
      const share = data.share(l, e);
      fill.style.width = `${(100 * share) / data.maxShare}%`;
      equal.style.left = `${100 / size / data.maxShare}%`;
      say(value, percent(share));
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
    const width = frame.clientWidth, scale = window.devicePixelRatio || 1;
    if (!width) return;
    const room = width - LEFT - 1;
    cell.width = clamp(room / T, 2, 24);
    cell.height = clamp(Math.floor(230 / L), 7, 22);
    const top = 8, bottom = top + L * cell.height, height = bottom + 18;
    spacer.style.width = cell.width * T > room + 1 ? `${LEFT + cell.width * T + 1}px` : "100%";
    const scrolls = frame.scrollWidth > frame.clientWidth;
    if (scrolls) frame.tabIndex = 0; else frame.removeAttribute("tabindex");
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    const style = getComputedStyle(root), ctx = canvas.getContext("2d");
    const strong = style.color, quiet = style.getPropertyValue("--quiet");
    const x = (t) => LEFT + t * cell.width - frame.scrollLeft, y = (l) => top + l * cell.height;
    const from = Math.max(0, Math.floor(frame.scrollLeft / cell.width));
    const to = Math.min(T, Math.ceil((frame.scrollLeft + room) / cell.width));
    const l0 = get("layer"), t0 = get("selected"), gap = cell.height > 9 ? 1 : 0, split = cell.width > 5 ? 1 : 0;
    const print = cell.width >= 13 && cell.height >= 12;
    ctx.setTransform(scale, 0, 0, scale, 0, 0);
    ctx.clearRect(0, 0, width, height);
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
  const inks = data.colors.map(ink);

  // Several changes in one frame cost one drawing.
  const frames = new Map();
  function soon(paint) {
    if (!frames.has(paint)) frames.set(paint, requestAnimationFrame(() => { frames.delete(paint); paint(); }));
  }

  // Dark is what the host says it is: read from the ink that its theme gives.
  function theme() {
    const [r, g, b] = (getComputedStyle(root).color.match(/[\d.]+/g) ?? [0, 0, 0]).map(Number);
    root.classList.toggle("dark", r + g + b > 384);
    soon(drawNumbers);
    soon(drawMap);
  }

  // --- listening --------------------------------------------------------------------------------

  const changed = {
    layer: () => { paintLayer(); paintFilter(); paintText(); paintToken(); paintLoad(); soon(drawMap); announce(); },
    selected: () => { paintSelection(); paintToken(); soon(drawMap); announce(); },
    expert: () => { paintFilter(); paintText(); paintLoad(); soon(drawMap); },
  };
  for (const [key, paint] of Object.entries(changed)) model.on(`change:${key}`, paint);

  const on = (target, type, act, more = {}) => target.addEventListener(type, act, { signal, ...more });
  const point = (t) => { if (t !== hover) { hover = t; soon(paintToken); soon(drawMap); } };
  const under = (event) => { const tok = event.target.closest?.(".tok"); return tok ? Number(tok.dataset.t) : -1; };
  on(slider, "input", () => set({ layer: Number(slider.value) }));
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
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
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
  on(root, "keydown", (event) => {
    if (press(event)) event.preventDefault();
    // What is typed here is not for the notebook around it, whose `d d` deletes a cell; but
    // Shift+Enter still runs the cell, and whatever is held with Ctrl, Alt or Cmd passes.
    if (!event.ctrlKey && !event.metaKey && !event.altKey && !(event.key === "Enter" && event.shiftKey)) event.stopPropagation();
  });

  // The first report comes when the page has been laid out, and so has its colours: a host may
  // call render before that.
  const resized = new ResizeObserver(() => { theme(); look(); });
  resized.observe(frame);
  resized.observe(listbox);
  // Whatever turns the theme, in whatever host, turns the ink; and that is a (brief) transition.
  for (const type of ["transitionend", "transitioncancel"])
    on(root, type, (event) => { if (event.target === root) theme(); });

  changed.layer();
  paintSelection();
  theme();

  return () => {
    stop.abort();
    resized.disconnect();
    frames.forEach((frame) => cancelAnimationFrame(frame));
    for (const [key, paint] of Object.entries(changed)) model.off(`change:${key}`, paint);
    root.remove();
  };
}

/** Draws the widget into el, again whenever another trace arrives; returns what takes it away. */
function render({ model, el }) {
  let remove = build(model, el), due = false, gone = false;
  const rebuild = () => { // tokens and data change together: build once
    if (due) return;
    due = true;
    queueMicrotask(() => { due = false; if (!gone) { remove(); remove = build(model, el); } });
  };
  model.on("change:data", rebuild);
  model.on("change:tokens", rebuild);
  return () => {
    gone = true;
    model.off("change:data", rebuild);
    model.off("change:tokens", rebuild);
    remove();
  };
}

export default { render };
