// The simplex of balance. Python sends the tokens' logits over three experts and some named starts;
// everything else is computed here, so the page answers without a kernel. Two things travel either
// way: logits and selected (the token that moves; -1: P, and with it all tokens).

const STEP = 0.5, BEAT_MS = 400, REST = 1e-3; // as in balance_simplex.py; a push that ends the play
const WIDE = 540, HIGH = 500, SIDE = 430, LEFT = 55, BASE = 440, LEAST = 0.004;
const CORNERS = [[LEFT, BASE], [LEFT + SIDE, BASE], [LEFT + SIDE / 2, BASE - (SIDE * Math.sqrt(3)) / 2]];
const PAIRS = [[0, 1], [0, 2], [1, 2]];
const NAMED = [[10, BASE + 26, "start"], [WIDE - 10, BASE + 26, "end"], [LEFT + SIDE / 2, CORNERS[2][1] - 32, "middle"]];

const mean3 = (rows) => [0, 1, 2].map((e) => sum(rows.map((row) => row[e])) / rows.length);
const place = (p) => [0, 1].map((d) => sum(CORNERS.map((c, e) => p[e] * c[d])));
const round = (x) => Math.round(x * 1e4) / 1e4;

/** The point x, y, drawn into the triangle, as three shares, none of them quite zero. */
function shares([x, y]) {
  const top = (BASE - y) / (BASE - CORNERS[2][1]), right = (x - LEFT) / SIDE - top / 2;
  const p = [1 - top - right, right, top].map((s) => Math.max(s, LEAST));
  return p.map((s) => s / sum(p));
}

/** Takes a distribution back to logits, whose mean is 0. */
function logitsOf(p) {
  const z = p.map(Math.log), middle = sum(z) / 3;
  return z.map((x) => round(x - middle));
}

/** Adds one shift to every token's logits so that the mean of their softmaxes is the target. */
function shiftTo(logits, target) {
  let shift = [0, 0, 0];
  for (let n = 0; n < 60; n++) {
    const P = mean3(logits.map((z) => softmax(z.map((x, e) => x + shift[e]))));
    shift = shift.map((s, e) => s + Math.log(target[e] / P[e]));
  }
  return logits.map((z) => {
    const moved = z.map((x, e) => x + shift[e]), middle = sum(moved) / 3;
    return moved.map((x) => round(x - middle));
  });
}

function measure(logits) {
  const probs = logits.map(softmax), T = logits.length;
  const chosen = logits.map((z) => z.indexOf(Math.max(...z))); // of equals, the first
  const f = [0, 1, 2].map((e) => chosen.filter((c) => c === e).length / T), P = mean3(probs);
  // The gradient, times T: 3 p_e (f_e - sum p f). A step goes the other way.
  const paid = probs.map((p) => sum(p.map((x, e) => x * f[e])));
  const push = probs.map((p, t) => p.map((x, e) => -STEP * 3 * x * (f[e] - paid[t])));
  return { probs, chosen, f, P, paid, push, value: 3 * sum(f.map((x, e) => x * P[e])), violation: 3 * Math.max(...f) - 1 };
}

const stepped = (logits, push, size = 1) =>
  logits.map((z, t) => {
    const moved = z.map((x, e) => x + size * push[t][e]), middle = sum(moved) / 3;
    return moved.map((x) => x - middle);
  });

function render({ model, el }) {
  const { get, set, on, labelled, slider, button, repeat, show } = tie(model), colors = get("colors"), starts = get("starts");

  // --- controls
  const menu = h("select", { "aria-label": "Start from" }, h("option", { value: "" }, "start from…"),
    ...Object.keys(starts).map((name) => h("option", { value: name }, name)));
  on(menu, "change", () => { if (menu.value) set({ selected: -1, logits: starts[menu.value] }); });
  const picked = () => Math.min(get("selected"), get("logits").length - 1), name = () => `token ${picked()}`;
  const which = slider("selected", "Moves", { min: -1 }, (n) => (n < 0 ? "all (P)" : name()), (n) => (n < 0 ? "all tokens, with P" : name()));
  const walk = (count) => () => {
    let logits = get("logits");
    for (let n = 0; n < count; n++) logits = stepped(logits, measure(logits).push);
    set({ logits });
  };
  const controls = h("div.controls", {}, labelled("Start", menu), which,
    h("span.buttons", {}, repeat(() => { walk(1)(); return Math.max(...measure(get("logits")).push.flat()) < REST; }, BEAT_MS)[0],
      button("One step down the loss", walk(1)), button("Ten steps", walk(10))));

  // --- the triangle
  const svg = h("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "application", tabindex: 0 });
  const outline = CORNERS.map((c) => c.join()).join(" "), centre = place([1 / 3, 1 / 3, 1 / 3]);
  const halfway = PAIRS.map(([i, j]) => [0, 1].map((d) => (CORNERS[i][d] + CORNERS[j][d]) / 2));
  const home = (e) => PAIRS.flatMap((pair, n) => (pair.includes(e) ? [halfway[n]] : []));
  svg.append(
    ...CORNERS.map((c, e) => h("polygon.home", { fill: colors[e], points: [c, home(e)[0], centre, home(e)[1]].map((q) => q.join()).join(" ") })),
    h("polygon.edge", { points: outline }),
    ...halfway.map((m) => h("line.border", { x1: m[0], y1: m[1], x2: centre[0], y2: centre[1] })),
    ...NAMED.map(([x, y, anchor], e) => h("text", { x, y, "text-anchor": anchor }, `expert ${e}`)),
  );
  const corners = NAMED.map(([x, y, anchor]) => h("text.corner", { x, y: y + 20, "text-anchor": anchor }));
  const level = h("line.level"), levelText = h("text.small"), arrows = h("g"), dots = h("g");
  const main = shot();
  const fMark = h("rect.mark", { width: 16, height: 16 }), fText = h("text.name", {}, "f");
  const pMark = h("polygon.mark"), pText = h("text.name", {}, "P"), ring = h("circle.ring", { r: 15 }), price = h("text.price");
  svg.append(...corners, level, levelText, arrows, dots, main.shaft, main.head, fMark, fText, pMark, pText, ring, price);
  let tokens = [];
  function fit(T) {
    if (tokens.length === T) return;
    tokens = range(T).map(() => ({ ...shot(), dot: h("circle.token", { r: 9 }), tag: h("text.tag", { "text-anchor": "middle" }) }));
    arrows.replaceChildren(...tokens.flatMap((x) => [x.shaft, x.head]));
    dots.replaceChildren(...tokens.flatMap((x) => [x.dot, x.tag]));
  }

  // --- the numbers
  const value = h("p.said", { role: "status" }), told = h("p.quiet");
  const root = h("div.balance-simplex", {}, controls, h("div.two", {}, h("section", {}, svg),
    h("section", {}, h("h2", {}, "The loss"), value, told,
      h("p.quiet", {}, "A circle is a token, its number the expert it goes to; f and P are at the corners too. One token, the one that is pushed most or the one chosen, has written at it what it pays: its probabilities times f, summed. The value is three times the mean of what all pay. Arrows: two steps down the loss. Where the dashed line parts P from f, the value is below 1."))));

  // --- moving
  const here = (event) => within(svg, WIDE, HIGH, event);
  const spot = (n) => { const { probs, P } = measure(get("logits")); return place(n < 0 ? P : probs[n]); };
  function moveTo(point) {
    const n = get("selected"), logits = get("logits");
    set({ logits: n < 0 ? shiftTo(logits, shares(point)) : logits.map((z, t) => (t === n ? logitsOf(shares(point)) : z)) });
  }
  let dragging = false;
  on(svg, "pointerdown", (event) => {
    const at = here(event), far = (n) => Math.hypot(...spot(n).map((v, d) => v - at[d]));
    let near = -1, least = far(-1);
    for (let n = 0; n < get("logits").length; n++) if (far(n) < least - 1e-9) [near, least] = [n, far(n)];
    if (least > 26) return;
    if (far(-1) < 14) near = -1; // P lies on top
    dragging = true;
    svg.setPointerCapture(event.pointerId);
    set({ selected: near });
  });
  on(svg, "pointermove", (event) => { if (dragging) moveTo(here(event)); });
  for (const end of ["pointerup", "pointercancel"]) on(svg, end, () => { dragging = false; });
  const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  on(svg, "keydown", (event) => {
    const way = WAYS[event.key];
    if (!way) return;
    event.preventDefault();
    const from = spot(get("selected"));
    moveTo(from.map((v, d) => v + way[d] * (event.shiftKey ? 2 : 9)));
  });

  // --- painting
  function verdict({ value: v, violation, f }) {
    const idle = f.flatMap((x, e) => (x === 0 ? [e] : [])), dead = idle.length ? `; no token goes to expert ${idle.join(" or ")}` : "";
    if (violation < 1e-9) return "The counts are equal, so the value is exactly 1 and there is no push at all, wherever P is.";
    if (Math.abs(v - 1) < 5e-4) return `Exactly the value of perfect balance, though the counts are not equal${dead}.`;
    if (v < 1) return `Below 1, so "better than balanced", though the counts are not equal${dead}. Most of P lies where f is not.`;
    return `Above 1: the router believes in the experts that are crowded${dead}.`;
  }
  function paint() {
    const logits = get("logits"), n = picked(), now = measure(logits);
    const later = measure(stepped(logits, now.push, 2));
    fit(logits.length);
    which.control.max = logits.length - 1;
    if (menu.value && JSON.stringify(starts[menu.value]) !== JSON.stringify(logits)) menu.value = "";
    tokens.forEach((token, t) => {
      const at = place(now.probs[t]);
      point(token, at, place(later.probs[t]));
      attr(token.dot, { cx: at[0], cy: at[1], stroke: colors[now.chosen[t]] });
      attr(token.tag, { x: at[0], y: at[1] + 4 });
      token.tag.textContent = now.chosen[t];
    });
    const at = place(now.P), fAt = place(now.f), ringAt = n < 0 ? at : place(now.probs[n]);
    point(main, at, place(later.P));
    attr(fMark, { x: fAt[0] - 8, y: fAt[1] - 8 });
    attr(fText, { x: fAt[0] - 22, y: fAt[1] + 5 });
    pMark.setAttribute("points", [[0, -11], [11, 0], [0, 11], [-11, 0]].map(([x, y]) => [at[0] + x, at[1] + y].join()).join(" "));
    attr(pText, { x: at[0] + 15, y: at[1] - 8 });
    attr(ring, { cx: ringAt[0], cy: ringAt[1] });
    const crossings = PAIRS.flatMap(([i, j]) => {
      const a = 3 * now.f[i] - 1, b = 3 * now.f[j] - 1;
      if (Math.abs(a - b) < 1e-9 || a * b > 1e-12) return [];
      return [[0, 1].map((d) => CORNERS[i][d] + (a / (a - b)) * (CORNERS[j][d] - CORNERS[i][d]))];
    }).filter((q, k, all) => all.findIndex((r) => Math.hypot(r[0] - q[0], r[1] - q[1]) < 1) === k);
    const line = crossings.length === 2;
    level.style.display = levelText.style.display = line ? "" : "none";
    if (line) {
      const [a, b] = crossings.sort((q, r) => q[1] - r[1] || q[0] - r[0]);
      const [way, anchor] = a[0] > WIDE / 2 ? [10, "start"] : [-10, "end"];
      attr(level, { x1: a[0], y1: a[1], x2: b[0], y2: b[1] });
      attr(levelText, { x: a[0] + way, y: a[1] - 4, "text-anchor": anchor });
      levelText.textContent = "value 1";
    }
    corners.forEach((text, e) => { text.textContent = `f ${now.f[e].toFixed(3)}, P ${now.P[e].toFixed(3)}`; });
    const [priced] = n < 0 ? best(now.push.map((p) => Math.hypot(...p)), 1) : [n], [x, y] = place(now.probs[priced]);
    attr(price, x < WIDE / 2 ? { x: x - 14, y: y + 5, "text-anchor": "end" } : { x: x + 14, y: y + 5, "text-anchor": "start" });
    price.textContent = `pays ${now.paid[priced].toFixed(3)}`;
    value.textContent = `Value ${now.value.toFixed(3)}, MaxVio ${now.violation.toFixed(2)}`;
    told.textContent = verdict(now);
    svg.setAttribute("aria-label", `Triangle of three experts, ${logits.length} tokens. Arrow keys move ${n < 0 ? "P, and with it all tokens" : `token ${n}`}; with Shift, in small steps. P is ${now.P.map((x) => x.toFixed(2)).join(", ")}; f is ${now.f.map((x) => x.toFixed(2)).join(", ")}.`);
  }

  return show(el, root, ["logits", "selected"], paint);
}

export default { render };
