// The tree explorer. Python sends, for each step of EM, every point's share of every node before
// (prior) and after (posterior) its y is known; three numbers travel either way afterwards: `step`,
// `node` and `token` (a point, -1 none). Everything is drawn once and later only changed.

const WIDE = 640, HIGH = 400, PAD = 34;

const whole = (share) => percent(share, 0);

function render({ model, el }) {
  const { get, set, on, slider, show } = tie(model), depth = get("depth"), x = get("x"), y = get("y");
  const colors = get("colors"), likelihood = get("likelihood");
  const E = 2 ** depth, N = 2 * E - 1, T = x.length, steps = likelihood.length;
  const lines = new Float32Array(cut(get("lines")));
  const shares = { prior: new Uint8Array(cut(get("prior"))), posterior: new Uint8Array(cut(get("posterior"))) };
  const share = (which, t, n, step = get("step")) => shares[which][(step * T + t) * N + n] / 255;
  const name = (n) => (n < E - 1 ? `gate ${n}` : `expert ${n - E + 1}`);

  // --- scales
  const span = (values) => {
    const low = Math.min(...values), high = Math.max(...values), room = 0.08 * (high - low) || 1;
    return [low - room, high + room];
  };
  const [x0, x1] = span(x), [y0, y1] = span(y);
  const px = (v) => PAD + ((v - x0) / (x1 - x0)) * (WIDE - PAD - 8);
  const py = (v) => HIGH - PAD - ((v - y0) / (y1 - y0)) * (HIGH - PAD - 8);

  // --- controls
  const level = h("span.quiet");
  const controls = h("div.controls", {}, slider("step", "EM step", { min: 0, max: steps - 1 }),
    slider("token", "Point", { min: -1, max: T - 1 }, (t) => (t < 0 ? "none" : String(t))), level);

  // --- the points and the experts' lines
  const svg = h("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `${T} points and the lines of ${E} experts` });
  svg.append(h("path.axis", { d: `M${PAD} 8V${HIGH - PAD}H${WIDE - 8}` }),
    h("text", { x: WIDE - 18, y: HIGH - PAD + 20 }, "x"), h("text", { x: 12, y: 20 }, "y"));
  const dots = x.map((v, t) => h("circle", { cx: px(v), cy: py(y[t]), r: 4.2 }));
  const paths = colors.map((color) => ({
    thin: h("path", { fill: "none", stroke: color, "stroke-width": 1, opacity: 0.5 }),
    wide: h("path", { fill: "none", stroke: color, "stroke-width": 4, "stroke-linecap": "round" }),
    tag: h("text", { "text-anchor": "middle", "font-weight": 700 }),
    guide: h("path.guide", { stroke: color }),
  }));
  const mixed = h("path.mixed"), ring = h("circle.ring", { r: 8 });
  svg.append(...paths.flatMap((p) => [p.guide, p.thin]), ...dots, ...paths.map((p) => p.wide), mixed, ...paths.map((p) => p.tag), ring);
  on(svg, "click", (event) => {
    const at = within(svg, WIDE, HIGH, event);
    let near = -1, least = 24 ** 2;
    for (let t = 0; t < T; t++) {
      const far = (px(x[t]) - at[0]) ** 2 + (py(y[t]) - at[1]) ** 2;
      if (far < least) [near, least] = [t, far];
    }
    set({ token: near });
  });
  const caption = h("p.quiet");

  // --- the tree, above the plot: of two branches, the one whose points lie further left stands left
  const region = (n) => sum(x.map((v, t) => v * share("prior", t, n, steps - 1))) / (sum(x.map((_, t) => share("prior", t, n, steps - 1))) || 1);
  const kids = range(E - 1).map((n) => [2 * n + 1, 2 * n + 2].sort((a, b) => region(a) - region(b))), column = [0];
  kids.forEach(([left, right], n) => {
    const tier = Math.floor(Math.log2(n + 1));
    [column[left], column[right]] = [column[n], column[n] + 2 ** (depth - tier - 1)];
  });
  const nodes = range(N).map((n) => {
    const tier = Math.floor(Math.log2(n + 1)), wide = 2 ** (depth - tier);
    const prior = h("i"), own = h("i"), value = h("span");
    const button = h("button", { type: "button",
      style: `grid-row:${tier + 1};grid-column:${column[n] + 1}/span ${wide};${n >= E - 1 ? `--c:${colors[n - E + 1]}` : ""}` },
      h("b", {}, E > 4 && n >= E - 1 ? `${n - E + 1}` : name(n)), value,
      h("span.track.prior", {}, prior), h("span.track", {}, own));
    on(button, "click", () => set({ node: n }));
    return { button, prior, own, value };
  });
  const tree = h("div.nodes", { role: "group", "aria-label": "The tree; press a node to see its points", style: `grid-template-columns:repeat(${E},minmax(0,1fr))` }, ...nodes.map((n) => n.button));
  const key = h("p.quiet"), said = h("p.said", { "aria-live": "polite" });

  const root = h("div.tree-explorer", {}, controls, h("div.two", {},
    h("section.plot", {}, tree, svg),
    h("section", {}, h("h2", {}, "The tree"), key, said, h("h2", {}, "The points, and who answers for them"), caption)));

  function paint() {
    const s = get("step"), n = get("node"), t = get("token");
    level.textContent = `log-likelihood ${likelihood[s].toFixed(1)}`;
    caption.textContent = `Colour: the expert most responsible. Strength: how much of the point passed ${name(n)}. Thick: where an expert's gates let it speak; dashed: the tree's answer.`;
    dots.forEach((dot, i) => {
      let leaf = 0;
      for (let e = 1; e < E; e++) if (share("posterior", i, E - 1 + e) > share("posterior", i, E - 1 + leaf)) leaf = e;
      attr(dot, { fill: colors[leaf], opacity: 0.12 + 0.88 * share("posterior", i, n) });
    });
    const answer = x.map(() => 0);
    paths.forEach(({ thin, wide, tag, guide }, e) => {
      const slope = lines[(s * E + e) * 2], intercept = lines[(s * E + e) * 2 + 1];
      const at = (v) => Math.min(HIGH - PAD, Math.max(8, py(slope * v + intercept)));
      attr(thin, { d: `M${px(x0)} ${py(slope * x0 + intercept)}L${px(x1)} ${py(slope * x1 + intercept)}` });
      let d = "", open = false, top = 0;
      for (let i = 0; i < T; i++) {
        const own = share("prior", i, E - 1 + e);
        answer[i] += own * (slope * x[i] + intercept);
        if (own > share("prior", top, E - 1 + e)) top = i;
        if (own >= 0.3) d += `${open ? "L" : "M"}${px(x[i])} ${at(x[i])}`;
        open = own >= 0.3;
      }
      attr(wide, { d });
      tag.textContent = d ? e : "";
      attr(tag, { x: px(x[top]), y: at(x[top]) - 8 });
      attr(guide, { d: d && `M${((column[E - 1 + e] + 0.5) / E) * WIDE} 0L${px(x[top])} ${at(x[top]) - 22}` });
    });
    mixed.setAttribute("d", answer.map((v, i) => `${i ? "L" : "M"}${px(x[i])} ${py(v)}`).join(""));
    attr(ring, t < 0 ? { visibility: "hidden" } : { visibility: "visible", cx: px(x[t]), cy: py(y[t]) });
    key.textContent = t < 0
      ? "Filled bar: the share of all points that passed the node (posterior). Outline: what the gates expected (prior)."
      : `For the point chosen. Outline: what the gates expect of its x (prior). Filled: once its y is known (posterior).`;
    const mean = (which, m) => sum(x.map((_, i) => share(which, i, m))) / T;
    const of = (which, m) => (t < 0 ? mean(which, m) : share(which, t, m));
    nodes.forEach(({ button, prior, own, value }, m) => {
      const before = of("prior", m), after = of("posterior", m);
      attr(button, { "aria-pressed": m === n, "aria-label": `${name(m)}: prior ${whole(before)}, posterior ${whole(after)}` });
      value.textContent = whole(after);
      prior.style.width = whole(before);
      own.style.width = whole(after);
    });
    const all = t < 0 ? (n ? `${whole(mean("posterior", n))} of all points` : "all points") : `point ${t} (x = ${x[t].toFixed(2)}, y = ${y[t].toFixed(2)})`;
    if (n >= E - 1) said.textContent = `Expert ${n - E + 1} answers for ${t < 0 ? all : `${whole(share("posterior", t, n))} of ${all}; its gates expected ${whole(share("prior", t, n))}`}.`;
    else {
      const left = (which) => whole(of(which, kids[n][0]) / (of(which, n) || 1));
      said.textContent = `For ${all}: gate ${n} would send ${left("prior")} of what reaches it left; knowing y, ${left("posterior")} should have gone there. The gate learns from the difference.`;
    }
  }

  return show(el, root, ["step", "node", "token"], paint);
}

export default { render };
