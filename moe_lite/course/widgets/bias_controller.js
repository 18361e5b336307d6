// The bias controller. Python sends the scores once; the whole run is computed here, so the page
// answers without a kernel. Three values travel either way: u, rule, step.

const STRIDE = 37; // as in bias_controller.py
const RATES = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1];
const WIDE = 560, HIGH = 190, LEFT = 44, RIGHT = 26, TOP = 10, BOTTOM = 26; // of a chart

/** Runs Algorithm 1 over fixed scores: for each step the biases that chose, and what came of it. */
function control(scores, k, u, rule, steps, batch) {
  const T = scores.length, E = scores[0].length, mean = (batch * k) / E;
  const chosen = new Uint8Array(T * E), score = new Float64Array(E);
  const run = { bias: [], load: [], batch: [], whole: [] };
  let bias = new Array(E).fill(0);
  for (let step = 0; step < steps; step++) {
    const whole = new Array(E).fill(0), load = new Array(E).fill(0);
    chosen.fill(0);
    for (let t = 0; t < T; t++) {
      for (let e = 0; e < E; e++) score[e] = scores[t][e] + bias[e];
      for (let n = 0; n < k; n++) {
        let first = 0;
        for (let e = 1; e < E; e++) if (score[e] > score[first]) first = e; // of equals the lower stays
        score[first] = -Infinity;
        chosen[t * E + first] = 1;
        whole[first]++;
      }
    }
    for (let i = 0; i < batch; i++) {
      const row = ((STRIDE * step + i) % T) * E;
      for (let e = 0; e < E; e++) load[e] += chosen[row + e];
    }
    run.bias.push(bias);
    run.load.push(load);
    run.batch.push(Math.max(...load) / mean - 1);
    run.whole.push((Math.max(...whole) * E) / (T * k) - 1);
    bias = bias.map((b, e) => b + u * (rule === "sign" ? Math.sign(mean - load[e]) : (mean - load[e]) / mean));
  }
  return run;
}

function render({ model, el }) {
  const { get, set, on, labelled, slider, menu, show } = tie(model);
  const scores = get("scores"), colors = get("colors"), k = get("k"), steps = get("steps"), batch = get("batch");
  const T = scores.length, E = colors.length;

  // --- controls
  const rate = h("input", { type: "range", min: 0, max: RATES.length - 1, step: 1, "aria-label": "Update rate u" });
  const rateShown = h("output");
  on(rate, "input", () => set({ u: RATES[Number(rate.value)] }));
  const controls = h("div.controls", {}, labelled("Update rate u", rate, rateShown),
    menu("rule", "Rule", [["sign", "sign: b + u · sign(mean − load)"], ["proportional", "proportional: b + u · (mean − load) / mean"]]),
    slider("step", "Step", { min: 0, max: steps - 1 }));

  // --- charts over the steps
  const across = (step) => LEFT + ((WIDE - LEFT - RIGHT) * step) / Math.max(1, steps - 1);
  function chart(name) {
    const marks = range(3).map(() => h("text", { x: LEFT - 6, "text-anchor": "end", "dominant-baseline": "middle" }));
    const zero = h("line.zero", { x1: LEFT, x2: WIDE - RIGHT }), now = h("line.now", { y1: TOP, y2: HIGH - BOTTOM });
    const svg = h("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": name },
      h("path.axis", { d: `M${LEFT} ${TOP}V${HIGH - BOTTOM}H${WIDE - RIGHT}` }), zero, now, ...marks,
      h("text", { x: LEFT, y: HIGH - 8 }, "0"),
      h("text", { x: WIDE - RIGHT, y: HIGH - 8, "text-anchor": "end" }, `step ${steps - 1}`));
    on(svg, "pointerdown", (event) => {
      const [x] = within(svg, WIDE, HIGH, event);
      set({ step: clamp(Math.round(((x - LEFT) * (steps - 1)) / (WIDE - LEFT - RIGHT)), 0, steps - 1) });
    });
    /** Fits the axis to these values; gives what turns a series into a path. */
    const fit = (low, high) => {
      const y = (v) => HIGH - BOTTOM - ((HIGH - TOP - BOTTOM) * (v - low)) / (high - low || 1);
      [low, (low + high) / 2, high].forEach((v, i) => {
        marks[i].setAttribute("y", y(v));
        marks[i].textContent = v.toFixed(high - low < 0.5 ? 3 : 2);
      });
      attr(zero, { y1: y(0), y2: y(0) });
      const path = (series) => `M${series.map((v, s) => `${across(s).toFixed(1)} ${y(v).toFixed(1)}`).join("L")}`;
      return { y, path };
    };
    const point = (step) => attr(now, { x1: across(step), x2: across(step) });
    return { svg, fit, point };
  }
  const violation = chart("MaxVio over the steps"), biases = chart("Bias of each expert over the steps");
  const ofBatch = h("path.batch"), ofWhole = h("path.whole");
  violation.svg.append(ofBatch, ofWhole);
  const lines = colors.map((color) => h("path.bias", { style: `stroke:${color}` }));
  const names = colors.map((_, e) => h("text", { x: WIDE - RIGHT + 5, "dominant-baseline": "middle" }, String(e)));
  biases.svg.append(...lines, ...names);

  // --- one step
  const heading = h("h2"), said = h("p.said", { role: "status" });
  const rows = colors.map((color, e) => {
    const fill = h("i", { style: `background: ${color}` }), share = h("u"), value = h("span.value");
    return { fill, share, value, row: h("li.row", {}, chip(e), h("span.track", {}, fill, share), value) };
  });
  const root = h("div.bias-controller", {}, controls, h("div.two", {},
    h("section", {},
      h("h2", {}, "MaxVio"),
      h("p.quiet", {}, `Thin: the step's batch of ${batch} tokens. Thick: all ${T} tokens under the same biases.`), violation.svg,
      h("h2", {}, "Biases"),
      h("p.quiet", {}, "One line for each expert, its number at the end. Click a chart to go to a step."), biases.svg),
    h("section", {}, heading,
      h("p.quiet", {}, "Bar: pairs that came. Dashed line: an equal share. b: the bias that chose them."),
      h("ul", {}, ...rows.map((r) => r.row)), said)));

  // --- painting
  let run, ran = "";
  function paint() {
    const u = get("u"), how = get("rule"), step = get("step");
    if (ran !== `${u} ${how}`) {
      ran = `${u} ${how}`;
      run = control(scores, k, u, how, steps, batch);
      const { path } = violation.fit(0, Math.max(0.1, ...run.batch, ...run.whole));
      ofBatch.setAttribute("d", path(run.batch));
      ofWhole.setAttribute("d", path(run.whole));
      const all = run.bias.flat(), scale = biases.fit(Math.min(-1e-3, ...all), Math.max(1e-3, ...all));
      lines.forEach((line, e) => line.setAttribute("d", scale.path(run.bias.map((b) => b[e]))));
      // The numbers at the end, pushed apart where lines end close together.
      const last = run.bias[steps - 1], order = best(last, E);
      let above = -Infinity;
      order.forEach((e, n) => {
        above = Math.min(Math.max(scale.y(last[e]), above + 11), HIGH - BOTTOM - 11 * (E - 1 - n));
        names[e].setAttribute("y", above);
      });
    }
    let near = 0;
    RATES.forEach((r, n) => { if (Math.abs(r - u) < Math.abs(RATES[near] - u)) near = n; });
    rate.value = near;
    rateShown.textContent = String(u);
    rate.setAttribute("aria-valuetext", String(u));
    violation.point(step);
    biases.point(step);
    heading.textContent = `Load at step ${step}`;
    const mean = (batch * k) / E, load = run.load[step], most = Math.max(1.6 * mean, ...load);
    rows.forEach(({ fill, share, value }, e) => {
      fill.style.width = `${(100 * load[e]) / most}%`;
      share.style.left = `${(100 * mean) / most}%`;
      value.textContent = `${load[e]}, b ${signed(run.bias[step][e], 3)}`;
    });
    said.textContent = `Step ${step}: MaxVio ${run.batch[step].toFixed(2)} in this batch, ` +
      `${run.whole[step].toFixed(2)} over all tokens. In the last 100 steps on average ` +
      `${average(run.batch).toFixed(2)} and ${average(run.whole).toFixed(2)}.`;
  }
  const average = (series) => { const end = series.slice(-100); return sum(end) / end.length; };

  return show(el, root, ["u", "rule", "step"], paint);
}

export default { render };
