// The simplex of balance. Python sends the tokens' logits over three experts and some named starts;
// everything else is computed here, so the page answers without a kernel. Two things travel either
// way: logits and selected (the token that moves; -1: P, and with it all tokens).

const NS = "http://www.w3.org/2000/svg", STEP = 0.5; // STEP as in balance_simplex.py
const WIDE = 540, HIGH = 500, SIDE = 430, LEFT = 55, BASE = 440, LEAST = 0.004;
const CORNERS = [[LEFT, BASE], [LEFT + SIDE, BASE], [LEFT + SIDE / 2, BASE - (SIDE * Math.sqrt(3)) / 2]];
const PAIRS = [[0, 1], [0, 2], [1, 2]];

/** Makes an element; text goes in as text nodes, never as markup. */
function h(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const drawn = ["svg", "g", "circle", "path", "text", "line", "rect", "polygon"].includes(name);
  const element = drawn ? document.createElementNS(NS, name) : document.createElement(name);
  if (classes.length) element.setAttribute("class", classes.join(" "));
  for (const [key, value] of Object.entries(props)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const sum = (xs) => xs.reduce((a, b) => a + b, 0);
const mean3 = (rows) => [0, 1, 2].map((e) => sum(rows.map((row) => row[e])) / rows.length);
const place = (p) => [0, 1].map((d) => sum(CORNERS.map((c, e) => p[e] * c[d])));
const round = (x) => Math.round(x * 1e4) / 1e4;

function softmax(z) {
  const most = Math.max(...z), exp = z.map((x) => Math.exp(x - most)), total = sum(exp);
  return exp.map((x) => x / total);
}

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
  const push = probs.map((p) => {
    const own = sum(p.map((x, e) => x * f[e]));
    return p.map((x, e) => -STEP * 3 * x * (f[e] - own));
  });
  return { probs, chosen, f, P, push, value: 3 * sum(f.map((x, e) => x * P[e])), violation: 3 * Math.max(...f) - 1 };
}

const stepped = (logits, push, size = 1) =>
  logits.map((z, t) => {
    const moved = z.map((x, e) => x + size * push[t][e]), middle = sum(moved) / 3;
    return moved.map((x) => x - middle);
  });

function render({ model, el }) {
  const colors = model.get("colors"), starts = model.get("starts"), stop = new AbortController();
  const on = (target, event, act) => target.addEventListener(event, act, { signal: stop.signal });
  const send = (changes) => { for (const [key, value] of Object.entries(changes)) model.set(key, value); model.save_changes(); };

  // --- controls
  const menu = h("select", { "aria-label": "Start from" }, h("option", { value: "" }, "start from…"),
    ...Object.keys(starts).map((name) => h("option", { value: name }, name)));
  on(menu, "change", () => { if (menu.value) send({ selected: -1, logits: starts[menu.value] }); });
  const which = h("input", { type: "range", min: -1, step: 1, "aria-label": "What moves" }), whichSaid = h("output");
  on(which, "input", () => send({ selected: Number(which.value) }));
  const walk = (count) => () => {
    let logits = model.get("logits");
    for (let n = 0; n < count; n++) logits = stepped(logits, measure(logits).push);
    send({ logits });
  };
  const one = h("button", { type: "button" }, "One step down the loss"), ten = h("button", { type: "button" }, "Ten steps");
  on(one, "click", walk(1));
  on(ten, "click", walk(10));
  const controls = h("div.controls", {}, h("label", {}, h("span", {}, "Start"), menu),
    h("label", {}, h("span", {}, "Moves"), which, whichSaid), one, ten);

  // --- the triangle
  const svg = h("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "application", tabindex: 0 });
  const outline = CORNERS.map((c) => c.join()).join(" "), centre = place([1 / 3, 1 / 3, 1 / 3]);
  const halfway = PAIRS.map(([i, j]) => [0, 1].map((d) => (CORNERS[i][d] + CORNERS[j][d]) / 2));
  const home = (e) => PAIRS.flatMap((pair, n) => (pair.includes(e) ? [halfway[n]] : []));
  svg.append(
    ...CORNERS.map((c, e) => h("polygon.home", { fill: colors[e], points: [c, home(e)[0], centre, home(e)[1]].map((q) => q.join()).join(" ") })),
    h("polygon.edge", { points: outline }),
    ...halfway.map((m) => h("line.border", { x1: m[0], y1: m[1], x2: centre[0], y2: centre[1] })),
    h("text", { x: CORNERS[0][0], y: BASE + 28, "text-anchor": "middle" }, "all to expert 0"),
    h("text", { x: CORNERS[1][0], y: BASE + 28, "text-anchor": "middle" }, "all to expert 1"),
    h("text", { x: CORNERS[2][0], y: CORNERS[2][1] - 14, "text-anchor": "middle" }, "all to expert 2"),
  );
  const level = h("line.level"), levelText = h("text.small"), arrows = h("g"), dots = h("g");
  const arrow = () => ({ shaft: h("line.shaft"), head: h("polygon.head") });
  const main = arrow();
  const fMark = h("rect.mark", { width: 16, height: 16 }), fText = h("text.name", {}, "f");
  const pMark = h("polygon.mark"), pText = h("text.name", {}, "P"), ring = h("circle.ring", { r: 15 });
  svg.append(level, levelText, arrows, dots, main.shaft, main.head, fMark, fText, pMark, pText, ring);
  let tokens = [];
  function fit(T) {
    if (tokens.length === T) return;
    tokens = Array.from({ length: T }, () => ({ ...arrow(), dot: h("circle.token", { r: 9 }), tag: h("text.tag", { "text-anchor": "middle" }) }));
    arrows.replaceChildren(...tokens.flatMap((x) => [x.shaft, x.head]));
    dots.replaceChildren(...tokens.flatMap((x) => [x.dot, x.tag]));
  }

  // --- the numbers
  const rows = colors.map((color, e) => {
    const bar = () => { const fill = h("i"); fill.style.background = color; return { fill, value: h("span.value") }; };
    const f = bar(), P = bar();
    P.fill.className = "soft";
    const track = (name, b) => h("div.row", {}, h("span.chip", {}, name), h("span.track", {}, b.fill, h("u")), b.value);
    return { f, P, item: h("li", {}, h("h3", {}, `Expert ${e}`), track("f", f), track("P", P)) };
  });
  const value = h("p.said", { role: "status" }), told = h("p.quiet");
  const numbers = h("section", {}, h("h2", {}, "The loss"), value, told,
    h("h2", {}, "f, the share of tokens, and P, the mean probability"), h("ul", {}, ...rows.map((r) => r.item)),
    h("p.quiet", {}, "Dashed: one third. The loss is 3 times the sum of f · P."));
  const root = h("div.balance-simplex", {}, controls, h("div.two", {},
    h("section", {}, h("h2", {}, "Tokens, f and P"),
      h("p.quiet", {}, "A circle is a token; it lies where its probabilities put it, and its number is the expert it goes to. P is the centre of the circles, f the centre of the corners they go to. Arrows: where two steps down the loss move them. Where the dashed line parts P from f, the value is below 1."),
      svg), numbers));
  el.append(root);

  // --- moving
  const here = (event) => {
    const box = svg.getBoundingClientRect();
    return [((event.clientX - box.left) * WIDE) / box.width, ((event.clientY - box.top) * HIGH) / box.height];
  };
  const spot = (n) => { const { probs, P } = measure(model.get("logits")); return place(n < 0 ? P : probs[n]); };
  function moveTo(point) {
    const n = model.get("selected"), logits = model.get("logits");
    send({ logits: n < 0 ? shiftTo(logits, shares(point)) : logits.map((z, t) => (t === n ? logitsOf(shares(point)) : z)) });
  }
  let dragging = false;
  on(svg, "pointerdown", (event) => {
    const at = here(event), far = (n) => Math.hypot(...spot(n).map((v, d) => v - at[d]));
    let best = -1, least = far(-1);
    for (let n = 0; n < model.get("logits").length; n++) if (far(n) < least - 1e-9) [best, least] = [n, far(n)];
    if (least > 26) return;
    if (far(-1) < 14) best = -1; // P lies on top
    dragging = true;
    svg.setPointerCapture(event.pointerId);
    send({ selected: best });
  });
  on(svg, "pointermove", (event) => { if (dragging) moveTo(here(event)); });
  for (const end of ["pointerup", "pointercancel"]) on(svg, end, () => { dragging = false; });
  const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  on(svg, "keydown", (event) => {
    const way = WAYS[event.key];
    if (!way) return;
    event.preventDefault();
    const from = spot(model.get("selected"));
    moveTo(from.map((v, d) => v + way[d] * (event.shiftKey ? 2 : 9)));
  });

  // --- painting
  function point({ shaft, head }, from, to) {
    const long = Math.hypot(to[0] - from[0], to[1] - from[1]), shown = long > 1.5;
    shaft.style.display = head.style.display = shown ? "" : "none";
    if (!shown) return;
    const u = [(to[0] - from[0]) / long, (to[1] - from[1]) / long], wide = Math.min(6, long / 2);
    const foot = to.map((v, d) => v - 1.6 * wide * u[d]);
    for (const [key, v] of [["x1", from[0]], ["y1", from[1]], ["x2", foot[0]], ["y2", foot[1]]]) shaft.setAttribute(key, v);
    head.setAttribute("points", [to, [foot[0] - wide * u[1], foot[1] + wide * u[0]], [foot[0] + wide * u[1], foot[1] - wide * u[0]]].map((q) => q.join()).join(" "));
  }
  function verdict({ value: v, violation, f }) {
    const idle = f.flatMap((x, e) => (x === 0 ? [e] : [])), dead = idle.length ? `; no token goes to expert ${idle.join(" or ")}` : "";
    if (violation < 1e-9) return "The counts are equal, so the value is exactly 1 and there is no push at all, wherever P is.";
    if (Math.abs(v - 1) < 5e-4) return `Exactly the value of perfect balance, though the counts are not equal${dead}.`;
    if (v < 1) return `Below 1, so "better than balanced", though the counts are not equal${dead}. Most of P lies where f is not.`;
    return `Above 1: the router believes in the experts that are crowded${dead}.`;
  }
  function paint() {
    const logits = model.get("logits"), n = Math.min(model.get("selected"), logits.length - 1), now = measure(logits);
    const later = measure(stepped(logits, now.push, 2));
    fit(logits.length);
    which.max = logits.length - 1;
    which.value = n;
    whichSaid.textContent = n < 0 ? "all (P)" : `token ${n}`;
    which.setAttribute("aria-valuetext", n < 0 ? "all tokens, with P" : `token ${n}`);
    if (menu.value && JSON.stringify(starts[menu.value]) !== JSON.stringify(logits)) menu.value = "";
    tokens.forEach((token, t) => {
      const at = place(now.probs[t]);
      point(token, at, place(later.probs[t]));
      token.dot.setAttribute("cx", at[0]); token.dot.setAttribute("cy", at[1]);
      token.dot.setAttribute("stroke", colors[now.chosen[t]]);
      token.tag.setAttribute("x", at[0]); token.tag.setAttribute("y", at[1] + 4);
      token.tag.textContent = now.chosen[t];
    });
    const at = place(now.P), fAt = place(now.f), picked = n < 0 ? at : place(now.probs[n]);
    point(main, at, place(later.P));
    fMark.setAttribute("x", fAt[0] - 8); fMark.setAttribute("y", fAt[1] - 8);
    fText.setAttribute("x", fAt[0] - 22); fText.setAttribute("y", fAt[1] + 5);
    pMark.setAttribute("points", [[0, -11], [11, 0], [0, 11], [-11, 0]].map(([x, y]) => [at[0] + x, at[1] + y].join()).join(" "));
    pText.setAttribute("x", at[0] + 15); pText.setAttribute("y", at[1] - 8);
    ring.setAttribute("cx", picked[0]); ring.setAttribute("cy", picked[1]);
    const crossings = PAIRS.flatMap(([i, j]) => {
      const a = 3 * now.f[i] - 1, b = 3 * now.f[j] - 1;
      if (Math.abs(a - b) < 1e-9 || a * b > 1e-12) return [];
      return [[0, 1].map((d) => CORNERS[i][d] + (a / (a - b)) * (CORNERS[j][d] - CORNERS[i][d]))];
    }).filter((q, k, all) => all.findIndex((r) => Math.hypot(r[0] - q[0], r[1] - q[1]) < 1) === k);
    const line = crossings.length === 2;
    level.style.display = levelText.style.display = line ? "" : "none";
    if (line) {
      const [a, b] = crossings.sort((q, r) => q[1] - r[1] || q[0] - r[0]);
      for (const [key, v] of [["x1", a[0]], ["y1", a[1]], ["x2", b[0]], ["y2", b[1]]]) level.setAttribute(key, v);
      levelText.setAttribute("x", a[0] + (a[0] > WIDE / 2 ? 10 : -10)); levelText.setAttribute("y", a[1] - 4);
      levelText.setAttribute("text-anchor", a[0] > WIDE / 2 ? "start" : "end");
      levelText.textContent = "value 1";
    }
    rows.forEach(({ f, P }, e) => {
      for (const [b, x] of [[f, now.f[e]], [P, now.P[e]]]) { b.fill.style.width = `${100 * x}%`; b.value.textContent = x.toFixed(3); }
    });
    value.textContent = `Value ${now.value.toFixed(3)}, MaxVio ${now.violation.toFixed(2)}`;
    told.textContent = verdict(now);
    svg.setAttribute("aria-label", `Triangle of three experts, ${logits.length} tokens. Arrow keys move ${n < 0 ? "P, and with it all tokens" : `token ${n}`}; with Shift, in small steps. P is ${now.P.map((x) => x.toFixed(2)).join(", ")}; f is ${now.f.map((x) => x.toFixed(2)).join(", ")}.`);
  }
  let frame = 0;
  const soon = () => { frame ||= requestAnimationFrame(() => { frame = 0; paint(); }); };
  const watched = ["logits", "selected"].map((key) => `change:${key}`);
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
