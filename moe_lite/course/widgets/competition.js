// The competition explorer. Python sends the cases and the weights at each kept moment of the
// training once; from then on `moment`, `expert`, `selected` (a case, -1 all) and `lines` (the
// experts' weights after somebody dragged them, empty: as trained) travel either way.

const WIDE = 640, HIGH = 460, LEFT = 46, RIGHT = 12, TOP = 10, BOTTOM = 38; // of the picture
const COLUMNS = 104, ROWS = 76; // cells in which the gate's regions are painted

function render({ model, el }) {
  const { get, set, on, soon, onTheme, slider, button, show } = tie(model);
  const labels = get("labels"), target = get("target"), epochs = get("epochs");
  const colors = get("colors"), E = colors.length, T = labels.length, experts = range(E);
  const [point, weights] = ["points", "weights"].map((key) => new Float32Array(cut(get(key))));
  const x = (t) => point[2 * t], y = (t) => point[2 * t + 1];

  // ------------------------------------------------------------------------------ the mixture

  const score = ([a, b, c], u, v) => a * u + b * v + c;
  const gate = (e) => weights.subarray((get("moment") * E + e) * 6 + 3, (get("moment") * E + e) * 6 + 6);
  const trained = (e) => [...weights.subarray((get("moment") * E + e) * 6, (get("moment") * E + e) * 6 + 3)];
  const line = (e) => (get("lines").length ? get("lines").slice(3 * e, 3 * e + 3) : trained(e));

  /** Gives a case's prior p, posterior h and the blended answer: what the library computes. */
  function weigh(t, lines, gates) {
    const logits = gates.map((g) => score(g, x(t), y(t)));
    const out = lines.map((w) => 1 / (1 + Math.exp(-score(w, x(t), y(t)))));
    const p = softmax(logits);
    const h_ = softmax(logits.map((l, e) => l - (target[t] - out[e]) ** 2 / 2));
    return { p, h: h_, out, answer: sum(p.map((share, e) => share * out[e])) };
  }

  // ------------------------------------------------------------------------------ the geometry

  const us = labels.map((_, t) => x(t)), vs = labels.map((_, t) => y(t));
  const low = [Math.min(...us) - 0.05, Math.min(...vs) - 0.08];
  const high = [Math.max(...us) + 0.05, Math.max(...vs) + 0.08];
  const scale = [(WIDE - LEFT - RIGHT) / (high[0] - low[0]), -(HIGH - TOP - BOTTOM) / (high[1] - low[1])];
  const pixel = (u, v) => [LEFT + (u - low[0]) * scale[0], TOP + (v - high[1]) * scale[1]];
  const value = (px, py) => [low[0] + (px - LEFT) / scale[0], high[1] + (py - TOP) / scale[1]];
  const inside = (px, py) => [clamp(px, LEFT + 13, WIDE - RIGHT - 13), clamp(py, TOP + 13, HIGH - BOTTOM - 13)];
  /** The line's normal in pixels, of length 1, pointing to where the expert says 1. */
  const normal = ([a, b]) => {
    const n = [a / scale[0], b / scale[1]], length = Math.hypot(...n) || 1;
    return n.map((c) => c / length);
  };
  const anchors = new Map(); // expert -> where its handle was last left, in pixels
  /** Where the handle sits: the point of the line nearest to its anchor. */
  function handle(e) {
    const w = line(e), n = normal(w), steep = Math.hypot(w[0] / scale[0], w[1] / scale[1]) || 1;
    const at = anchors.get(e) ?? home(e);
    const far = score(w, ...value(...at)) / steep;
    return inside(at[0] - far * n[0], at[1] - far * n[1]);
  }
  let homes = [];
  const home = (e) => homes[e] ?? [LEFT + ((e + 0.5) * (WIDE - LEFT - RIGHT)) / E, HIGH / 2];

  // ------------------------------------------------------------------------------ the page

  const called = (t) => (t < 0 ? "all" : `[${labels[t]}]`);
  const moment = slider("moment", "Training", { min: 0, max: epochs.length - 1, "aria-label": "Moment of the training" }, (n) => `epoch ${epochs[n]}`);
  const one = slider("selected", "Vowel", { min: -1, max: T - 1, "aria-label": "One vowel, or all" }, called);
  const steep = h("input", { type: "range", min: -3, max: 7, step: 0.1 }), steepness = h("output");
  const restore = () => { anchors.clear(); set({ lines: [] }); };
  const reset = button("Lines as trained", restore);
  const canvas = h("canvas", { role: "img" });
  const tints = h("canvas", { width: COLUMNS, height: ROWS }); // one pixel a cell, then stretched
  const cells = new ImageData(COLUMNS, ROWS);
  const turn = h("button.turn", { type: "button", textContent: "⟳" });
  const handles = experts.map((e) => h("button.handle", { type: "button", textContent: e, style: `background:${colors[e]};color:${inkOn(colors[e])}` }));
  const plot = h("div.plot", {}, canvas, ...handles, turn);
  const bars = experts.map((e) => {
    const parts = { p: h("i.prior"), h: h("i"), np: h("span.value"), nh: h("span.value"), cases: h("span.cases") };
    parts.p.style.borderColor = parts.h.style.background = colors[e];
    parts.row = h("li", {},
      h("span.chip", { textContent: e, style: `background:${colors[e]};color:${inkOn(colors[e])}` }),
      h("span.pair", {}, h("span.track", {}, parts.p), parts.np, h("span.track", {}, parts.h), parts.nh), parts.cases);
    return parts;
  });
  const heading = h("h2"), said = h("p.said", { "aria-live": "polite" });
  const root = h("div.competition", {},
    h("div.controls", {}, moment, one, reset),
    h("div.two", {}, plot,
      h("div.side", {}, heading,
        h("p.quiet", { textContent: "Upper bar, hollow: p, what the gate believes. Lower bar, full: h, who answers for it." }),
        h("ul", {}, ...bars.map((bar) => bar.row)),
        h("label.steep", {}, "Steepness ", steep, steepness), said)),
    h("p.quiet.help", { textContent:
      "Drag a number to move its expert's line, ⟳ to turn it; there it changes from 0 to 1. By keyboard: Tab to a number, arrow keys move " +
      "the line, Shift with left or right turns it. Click a vowel to see who answers for it, beside the plane for all." }));

  // ------------------------------------------------------------------------------ painting

  function paint() {
    const lines = experts.map(line), gates = experts.map(gate), chosen = get("selected");
    const style = getComputedStyle(root), ink = style.color, ground = style.getPropertyValue("--ground").trim() || "#fff";
    const cases = labels.map((_, t) => weigh(t, lines, gates));
    const winner = cases.map(({ h: h_ }) => h_.indexOf(Math.max(...h_)));

    // Letters in the expert's hue, drawn towards the ink so that they stand out from its region.
    const black = (ink.match(/[\d.]+/g) ?? [0, 0, 0]).slice(0, 3).map(Number);
    const letter = colors.map((c) => `rgb(${rgb(c).map((part, i) => Math.round(0.6 * part + 0.4 * black[i])).join(" ")})`);

    const g = sheet(canvas, WIDE, HIGH);
    const dx = (WIDE - LEFT - RIGHT) / COLUMNS, dy = (HIGH - TOP - BOTTOM) / ROWS;
    const sums = experts.map(() => [0, 0, 0]);
    for (let j = 0, k = 0; j < ROWS; j++)
      for (let i = 0; i < COLUMNS; i++, k += 4) {
        const at = [LEFT + (i + 0.5) * dx, TOP + (j + 0.5) * dy], [u, v] = value(...at);
        const p = softmax(gates.map((w) => score(w, u, v))), top = Math.max(...p), e = p.indexOf(top);
        cells.data.set([...rgb(colors[e]), 255 * (0.16 + 0.4 * clamp(2 * top - 1, 0, 1))], k);
        sums[e][0] += at[0]; sums[e][1] += at[1]; sums[e][2]++;
      }
    tints.getContext("2d").putImageData(cells, 0, 0);
    g.drawImage(tints, LEFT, TOP, WIDE - LEFT - RIGHT, HIGH - TOP - BOTTOM);
    homes = sums.map(([a, b, n], e) => (n ? [a / n, b / n] : [LEFT + 24 + 34 * e, HIGH - BOTTOM - 20]));
    const idle = experts.filter((e) => !sums[e][2]);

    g.save();
    g.beginPath(); g.rect(LEFT, TOP, WIDE - LEFT - RIGHT, HIGH - TOP - BOTTOM); g.clip();
    for (const e of experts) {
      const n = normal(lines[e]), [cx, cy] = handle(e), mine = e === get("expert");
      g.setLineDash(idle.includes(e) ? [3, 6] : []);
      for (const [width, color] of [[mine ? 7 : 4.5, ground], [mine ? 4 : idle.includes(e) ? 1.5 : 2.5, colors[e]]]) {
        g.lineWidth = width; g.strokeStyle = color;
        g.beginPath(); g.moveTo(cx - 2000 * n[1], cy + 2000 * n[0]); g.lineTo(cx + 2000 * n[1], cy - 2000 * n[0]); g.stroke();
      }
    }
    g.setLineDash([]);
    g.textAlign = "center"; g.textBaseline = "middle"; g.lineJoin = "round";
    cases.forEach((_, t) => {
      const [px, py] = pixel(x(t), y(t)), mine = t === chosen;
      g.font = `${mine ? "bold 20px" : "16px"} system-ui, sans-serif`;
      g.lineWidth = 3; g.strokeStyle = ground; g.strokeText(labels[t], px, py);
      g.fillStyle = letter[winner[t]]; g.fillText(labels[t], px, py);
      if (mine) { g.lineWidth = 2; g.strokeStyle = ink; g.strokeRect(px - 14, py - 14, 28, 28); }
    });
    const e = get("expert"), n = normal(lines[e]), [cx, cy] = handle(e);
    g.font = "bold 15px system-ui, sans-serif";
    for (const [text, way] of [["1", 1], ["0", -1]]) { // on which side it says what
      const at = [cx + way * 26 * n[0], cy + way * 26 * n[1]];
      g.lineWidth = 4; g.strokeStyle = ground; g.strokeText(text, ...at); g.fillStyle = ink; g.fillText(text, ...at);
    }
    g.restore();

    g.strokeStyle = ink; g.fillStyle = ink; g.lineWidth = 1; g.font = "12px system-ui, sans-serif";
    g.strokeRect(LEFT, TOP, WIDE - LEFT - RIGHT, HIGH - TOP - BOTTOM);
    for (let u = Math.ceil(low[0] * 5) / 5; u <= high[0]; u += 0.2) g.fillText(u.toFixed(1), pixel(u, 0)[0], HIGH - BOTTOM + 11);
    g.fillText("F1, kHz", (LEFT + WIDE - RIGHT) / 2, HIGH - 9);
    g.textAlign = "right";
    for (let v = Math.ceil(low[1] * 2) / 2; v <= high[1]; v += 0.5) g.fillText(v.toFixed(1), LEFT - 5, pixel(0, v)[1]);
    g.save(); g.translate(10, HIGH / 2); g.rotate(-Math.PI / 2); g.textAlign = "center"; g.fillText("F2, kHz", 0, 0); g.restore();

    const place = (element, [px, py]) => { element.style.left = `${(100 * px) / WIDE}%`; element.style.top = `${(100 * py) / HIGH}%`; };
    handles.forEach((button, f) => {
      place(button, handle(f));
      attr(button, { "aria-pressed": f === e, "aria-label": `${f}, line of expert ${f}${idle.includes(f) ? ", idle" : ""}` });
    });
    const way = cx + 60 * n[1] < WIDE - RIGHT - 14 && cx + 60 * n[1] > LEFT + 14 && cy - 60 * n[0] > TOP + 14 && cy - 60 * n[0] < HIGH - BOTTOM - 14 ? 1 : -1;
    place(turn, inside(cx + way * 60 * n[1], cy - way * 60 * n[0]));
    turn.setAttribute("aria-label", `Turn the line of expert ${e}`);

    // The bars: one case, or the mean over all.
    const shown = chosen < 0 ? cases : [cases[chosen]];
    const mean = (name, f) => sum(shown.map((c) => c[name][f])) / shown.length;
    const counts = experts.map((f) => winner.filter((w) => w === f).length);
    bars.forEach((bar, f) => {
      for (const name of ["p", "h"]) {
        const share = mean(name, f);
        bar[name].style.width = `${100 * share}%`;
        bar[`n${name}`].textContent = `${name} ${share.toFixed(3)}`;
      }
      bar.cases.textContent = chosen < 0 ? `answers for ${counts[f]}` : `says ${cases[chosen].out[f].toFixed(2)}`;
      bar.row.classList.toggle("mine", f === e);
    });
    const right = cases.filter((c, t) => (c.answer > 0.5) === (target[t] > 0.5)).length;
    const squared = sum(cases.map((c, t) => (c.answer - target[t]) ** 2)) / T;
    heading.textContent = chosen < 0 ? `All ${T} vowels` : `${called(chosen)} at ${x(chosen).toFixed(2)}, ${y(chosen).toFixed(2)} kHz; the answer is ${target[chosen]}`;
    const slope = Math.hypot(lines[e][0], lines[e][1]);
    steep.value = Math.log2(slope);
    attr(steep, { "aria-label": `Steepness of expert ${e}'s answer`, "aria-valuetext": slope.toFixed(1) });
    steepness.textContent = `${slope.toFixed(1)} per kHz (expert ${e})`;
    const dragged = get("lines").length > 0;
    said.textContent = `${dragged ? "Lines moved by you" : "As trained"}: ${percent(right / T)} right, average squared error ${squared.toFixed(3)}.`;
    reset.disabled = !dragged;
    canvas.setAttribute("aria-label",
      `The plane of the first two formants at epoch ${epochs[get("moment")]}. ` +
      experts.map((f) => `Expert ${f} ${idle.includes(f) ? "has no region" : "has a region"} and answers for ${counts[f]} vowels`).join(". ") + ".");
  }

  // ------------------------------------------------------------------------------ the gestures

  function shift(e, px, py) { // move the line, parallel, to go through a pixel
    [px, py] = inside(px, py);
    const lines = experts.flatMap(line), [u, v] = value(px, py);
    anchors.set(e, [px, py]);
    lines[3 * e + 2] = -(lines[3 * e] * u + lines[3 * e + 1] * v);
    set({ expert: e, lines });
  }
  function rotate(e, angle) { // turn the line around its handle
    const lines = experts.flatMap(line), at = handle(e), [u, v] = value(...at);
    const a = lines[3 * e] / scale[0], b = lines[3 * e + 1] / scale[1];
    const [c, s] = [Math.cos(angle), Math.sin(angle)];
    lines[3 * e] = (c * a - s * b) * scale[0];
    lines[3 * e + 1] = (s * a + c * b) * scale[1];
    lines[3 * e + 2] = -(lines[3 * e] * u + lines[3 * e + 1] * v);
    anchors.set(e, at);
    set({ expert: e, lines });
  }
  function sharpen(e, slope) { // let the answer rise from 0 to 1 more or less steeply, the line where it is
    const lines = experts.flatMap(line), times = slope / (Math.hypot(lines[3 * e], lines[3 * e + 1]) || 1);
    anchors.set(e, handle(e));
    for (let i = 0; i < 3; i++) lines[3 * e + i] *= times;
    set({ lines });
  }
  const where = (event) => within(canvas, WIDE, HIGH, event);
  function drag(button, begin, move) {
    on(button, "pointerdown", (event) => { begin(event); button.setPointerCapture(event.pointerId); });
    on(button, "pointermove", (event) => { if (button.hasPointerCapture(event.pointerId)) move(event); });
  }
  handles.forEach((button, e) => {
    drag(button, () => set({ expert: e }), (event) => shift(e, ...where(event)));
    on(button, "focus", () => set({ expert: e }));
    on(button, "keydown", (event) => {
      const [dx, dy] = { ArrowLeft: [-6, 0], ArrowRight: [6, 0], ArrowUp: [0, -6], ArrowDown: [0, 6] }[event.key] ?? [];
      if (dx === undefined) return;
      event.preventDefault();
      if (event.shiftKey) rotate(e, (dx || dy) / 60);
      else { const at = handle(e); shift(e, at[0] + dx, at[1] + dy); }
    });
  });
  let before = 0;
  const bearing = (event) => { const [px, py] = where(event), at = handle(get("expert")); return Math.atan2(py - at[1], px - at[0]); };
  drag(turn, (event) => { before = bearing(event); }, (event) => { const now = bearing(event); rotate(get("expert"), now - before); before = now; });
  on(turn, "keydown", (event) => {
    const way = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (way) { event.preventDefault(); rotate(get("expert"), way / 10); }
  });
  on(canvas, "click", (event) => {
    const [px, py] = where(event);
    let near = -1, least = 14 ** 2;
    for (let t = 0; t < T; t++) {
      const [qx, qy] = pixel(x(t), y(t)), far = (px - qx) ** 2 + (py - qy) ** 2;
      if (far < least) [near, least] = [t, far];
    }
    set({ selected: near });
  });
  on(moment, "input", restore);
  on(steep, "input", () => sharpen(get("expert"), 2 ** +steep.value));
  onTheme(root, () => soon(paint));

  return show(el, root, ["moment", "expert", "selected", "lines"], paint);
}

export default { render };
