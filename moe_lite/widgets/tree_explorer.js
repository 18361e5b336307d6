// The tree explorer. Python sends, for each step of EM, every point's share of every node before
// (prior) and after (posterior) its y is known; three numbers travel either way afterwards: `step`,
// `node` and `token` (a point, -1 none). Everything is drawn once and later only changed.

const NS = "http://www.w3.org/2000/svg";
const WIDE = 640, HIGH = 400, PAD = 34;

/** Makes an element; text goes in as text nodes, never as markup. */
function h(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const drawn = ["svg", "circle", "path", "text", "line"].includes(name);
  const element = drawn ? document.createElementNS(NS, name) : document.createElement(name);
  if (classes.length) element.setAttribute("class", classes.join(" "));
  for (const [key, value] of Object.entries(props)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const percent = (share) => `${(100 * share).toFixed(0)}%`;
const block = (view, Type) =>
  new Type(new Uint8Array(view.buffer, view.byteOffset, view.byteLength).slice().buffer);

function render({ model, el }) {
  const depth = model.get("depth"), x = model.get("x"), y = model.get("y");
  const colors = model.get("colors"), likelihood = model.get("likelihood");
  const E = 2 ** depth, N = 2 * E - 1, T = x.length, steps = likelihood.length;
  const lines = block(model.get("lines"), Float32Array);
  const shares = { prior: block(model.get("prior"), Uint8Array), posterior: block(model.get("posterior"), Uint8Array) };
  const share = (which, t, n) => shares[which][(model.get("step") * T + t) * N + n] / 255;
  const name = (n) => (n < E - 1 ? `gate ${n}` : `expert ${n - E + 1}`);
  const set = (key, value) => { model.set(key, value); model.save_changes(); };

  // --- scales
  const span = (values) => {
    const low = Math.min(...values), high = Math.max(...values), room = 0.08 * (high - low) || 1;
    return [low - room, high + room];
  };
  const [x0, x1] = span(x), [y0, y1] = span(y);
  const px = (v) => PAD + ((v - x0) / (x1 - x0)) * (WIDE - PAD - 8);
  const py = (v) => HIGH - PAD - ((v - y0) / (y1 - y0)) * (HIGH - PAD - 8);

  // --- controls
  const slider = (max, least, label) => h("input", { type: "range", min: least, max, step: 1, "aria-label": label });
  const step = slider(steps - 1, 0, "step of EM"), token = slider(T - 1, -1, "point");
  const stepNumber = h("output"), tokenNumber = h("output"), level = h("span.quiet");
  step.addEventListener("input", () => set("step", Number(step.value)));
  token.addEventListener("input", () => set("token", Number(token.value)));
  const controls = h("div.controls", {}, h("label", {}, "EM step ", step, stepNumber),
    h("label", {}, "Point ", token, tokenNumber), level);

  // --- the points and the experts' lines
  const svg = h("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `${T} points and the lines of ${E} experts` });
  svg.append(h("path.axis", { d: `M${PAD} 8V${HIGH - PAD}H${WIDE - 8}` }),
    h("text", { x: WIDE - 18, y: HIGH - PAD + 20 }, "x"), h("text", { x: 12, y: 20 }, "y"));
  const dots = x.map((v, t) => h("circle", { cx: px(v), cy: py(y[t]), r: 4.2 }));
  const paths = colors.map((color) => ({
    thin: h("path", { fill: "none", stroke: color, "stroke-width": 1, opacity: 0.5 }),
    wide: h("path", { fill: "none", stroke: color, "stroke-width": 4, "stroke-linecap": "round" }),
    tag: h("text", { "text-anchor": "middle", "font-weight": 700 }),
  }));
  const mixed = h("path.mixed"), ring = h("circle.ring", { r: 8 });
  svg.append(...paths.map((p) => p.thin), ...dots, ...paths.map((p) => p.wide), mixed, ...paths.map((p) => p.tag), ring);
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    const at = [((event.clientX - box.left) * WIDE) / box.width, ((event.clientY - box.top) * HIGH) / box.height];
    let best = -1, least = 24 ** 2;
    for (let t = 0; t < T; t++) {
      const far = (px(x[t]) - at[0]) ** 2 + (py(y[t]) - at[1]) ** 2;
      if (far < least) [best, least] = [t, far];
    }
    set("token", best);
  });
  const caption = h("p.quiet");

  // --- the tree
  const nodes = Array.from({ length: N }, (_, n) => {
    const tier = Math.floor(Math.log2(n + 1)), wide = 2 ** (depth - tier);
    const prior = h("i"), own = h("i"), value = h("span");
    const button = h("button", { type: "button",
      style: `grid-row:${tier + 1};grid-column:${(n + 1 - 2 ** tier) * wide + 1}/span ${wide};${n >= E - 1 ? `--c:${colors[n - E + 1]}` : ""}` },
      h("b", {}, E > 4 && n >= E - 1 ? `${n - E + 1}` : name(n)), value,
      h("span.track.prior", {}, prior), h("span.track", {}, own));
    button.addEventListener("click", () => set("node", n));
    return { button, prior, own, value };
  });
  const tree = h("div.nodes", { role: "group", "aria-label": "The tree; press a node to see its points", style: `grid-template-columns:repeat(${E},minmax(0,1fr))` }, ...nodes.map((n) => n.button));
  const key = h("p.quiet"), said = h("p.said", { "aria-live": "polite" });

  // --- the likelihood
  const curve = h("svg", { viewBox: "0 0 400 110", role: "img", "aria-label": "log-likelihood by step" });
  const [l0, l1] = span(likelihood);
  const cx = (s) => 6 + (388 * s) / Math.max(1, steps - 1), cy = (v) => 104 - (98 * (v - l0)) / (l1 - l0);
  const now = h("circle.now", { r: 5 });
  curve.append(h("path.axis", { d: "M6 6V104H394" }),
    h("path.way", { d: likelihood.map((v, s) => `${s ? "L" : "M"}${cx(s)} ${cy(v)}`).join("") }), now);

  const root = h("div.tree", {}, controls, h("div.columns", {},
    h("section.plot", {}, h("h2", {}, "The points, and who answers for them"), caption, svg),
    h("section", {}, h("h2", {}, "The tree"), key, tree, said,
      h("h2", {}, "Log-likelihood, step by step"), curve)));
  el.append(root);

  function paint() {
    const s = model.get("step"), n = model.get("node"), t = model.get("token");
    step.value = s; token.value = t;
    stepNumber.textContent = s;
    tokenNumber.textContent = t < 0 ? "none" : t;
    level.textContent = `log-likelihood ${likelihood[s].toFixed(1)}`;
    caption.textContent = `Colour: the expert most responsible. Strength: how much of the point passed ${name(n)}. Thick: where an expert's gates let it speak; dashed: the tree's answer.`;
    dots.forEach((dot, i) => {
      let leaf = 0;
      for (let e = 1; e < E; e++) if (share("posterior", i, E - 1 + e) > share("posterior", i, E - 1 + leaf)) leaf = e;
      dot.setAttribute("fill", colors[leaf]);
      dot.setAttribute("opacity", 0.12 + 0.88 * share("posterior", i, n));
    });
    const answer = x.map(() => 0);
    paths.forEach(({ thin, wide, tag }, e) => {
      const slope = lines[(s * E + e) * 2], intercept = lines[(s * E + e) * 2 + 1];
      const at = (v) => Math.min(HIGH - PAD, Math.max(8, py(slope * v + intercept)));
      thin.setAttribute("d", `M${px(x0)} ${py(slope * x0 + intercept)}L${px(x1)} ${py(slope * x1 + intercept)}`);
      let d = "", open = false, top = 0;
      for (let i = 0; i < T; i++) {
        const own = share("prior", i, E - 1 + e);
        answer[i] += own * (slope * x[i] + intercept);
        if (own > share("prior", top, E - 1 + e)) top = i;
        if (own >= 0.3) d += `${open ? "L" : "M"}${px(x[i])} ${at(x[i])}`;
        open = own >= 0.3;
      }
      wide.setAttribute("d", d);
      tag.textContent = d ? e : "";
      tag.setAttribute("x", px(x[top]));
      tag.setAttribute("y", at(x[top]) - 8);
    });
    mixed.setAttribute("d", answer.map((v, i) => `${i ? "L" : "M"}${px(x[i])} ${py(v)}`).join(""));
    ring.setAttribute("visibility", t < 0 ? "hidden" : "visible");
    if (t >= 0) { ring.setAttribute("cx", px(x[t])); ring.setAttribute("cy", py(y[t])); }
    key.textContent = t < 0
      ? "Filled bar: the share of all points that passed the node (posterior). Outline: what the gates expected (prior)."
      : `For the point chosen. Outline: what the gates expect of its x (prior). Filled: once its y is known (posterior).`;
    const mean = (which, m) => { let sum = 0; for (let i = 0; i < T; i++) sum += share(which, i, m); return sum / T; };
    const of = (which, m) => (t < 0 ? mean(which, m) : share(which, t, m));
    nodes.forEach(({ button, prior, own, value }, m) => {
      const before = of("prior", m), after = of("posterior", m);
      button.setAttribute("aria-pressed", m === n);
      button.setAttribute("aria-label", `${name(m)}: prior ${percent(before)}, posterior ${percent(after)}`);
      value.textContent = percent(after);
      prior.style.width = percent(before);
      own.style.width = percent(after);
    });
    const all = t < 0 ? (n ? `${percent(mean("posterior", n))} of all points` : "all points") : `point ${t} (x = ${x[t].toFixed(2)}, y = ${y[t].toFixed(2)})`;
    if (n >= E - 1) said.textContent = `Expert ${n - E + 1} answers for ${t < 0 ? all : `${percent(share("posterior", t, n))} of ${all}; its gates expected ${percent(share("prior", t, n))}`}.`;
    else {
      const left = (which) => percent(of(which, 2 * n + 1) / (of(which, n) || 1));
      said.textContent = `For ${all}: gate ${n} would send ${left("prior")} of what reaches it left; knowing y, ${left("posterior")} should have gone there. The gate learns from the difference.`;
    }
    now.setAttribute("cx", cx(s)); now.setAttribute("cy", cy(likelihood[s]));
  }
  const watched = ["step", "node", "token"].map((key) => `change:${key}`);
  watched.forEach((event) => model.on(event, paint));
  paint();
  return () => { watched.forEach((event) => model.off(event, paint)); root.remove(); };
}

export default { render };
