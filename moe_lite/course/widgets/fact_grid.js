// The fact grid. Python measured every state; here they are only shown and counted. Two things
// travel either way: shown (which number of experts) and out (which expert is taken out).

const FIRST = 48, UNKNOWN = "0", HANGS = "1", WIDE = 700; // as in fact_grid.py

const grouped = (n) => n.toLocaleString("en-US");

function render({ model, el }) {
  const { get, set, on, slider, onTheme, show } = tie(model);
  const sizes = get("sizes"), experts = get("experts"), fates = get("fates"), columns = get("columns"), colors = get("colors");
  const facts = fates[0].length, side = WIDE / columns, high = side * Math.ceil(facts / columns);
  const there = (e) => e < sizes[get("shown")];

  const controls = h("div.controls", {},
    slider("shown", "Experts", { min: 0, max: sizes.length - 1 }, (n) => String(sizes[n])),
    slider("out", "Take out", { min: -1, max: colors.length - 1 },
      (e) => (e < 0 ? "none" : `expert ${e}${there(e) ? "" : " (not there)"}`)));
  const canvas = h("canvas", { role: "img" });
  const said = h("p.said", { role: "status" });
  const root = h("div.fact-grid", {}, controls,
    h("p.quiet", {}, "A square is a fact: filled where it is known, in the colour of the expert that answers; a dot where it is not; a cross where it was known and is forgotten. Click a square to take its expert out, and again to put it back."),
    canvas, said);

  on(canvas, "click", (event) => {
    const [x, y] = within(canvas, WIDE, high, event);
    const n = Math.floor(y / side) * columns + Math.floor(x / side);
    if (n < 0 || n >= facts) return;
    const expert = experts[get("shown")].charCodeAt(n) - FIRST;
    set({ out: expert === get("out") ? -1 : expert });
  });

  function paint() {
    const state = get("shown"), out = get("out"), E = sizes[state], ink = getComputedStyle(root).color;
    const g = sheet(canvas, WIDE, high);
    let before = 0, lost = 0;
    Object.assign(g, { font: `${side}px system-ui, sans-serif`, textAlign: "center", textBaseline: "middle" });
    for (let n = 0; n < facts; n++) {
      const fate = fates[state][n], expert = experts[state].charCodeAt(n) - FIRST;
      const x = (n % columns) * side, y = Math.floor(n / columns) * side;
      const known = fate !== UNKNOWN, gone = known && expert === out && fate === HANGS;
      before += known;
      lost += gone;
      g.fillStyle = known && !gone ? colors[expert] : ink;
      g.globalAlpha = known ? 1 : 0.35;
      const edge = known ? 0.08 : 0.42;
      if (gone) g.fillText("✕", x + side / 2, y + 0.55 * side, side);
      else g.fillRect(x + edge * side, y + edge * side, (1 - 2 * edge) * side, (1 - 2 * edge) * side);
    }
    g.globalAlpha = 1;
    const percent = (Math.floor((1000 * before) / facts + 0.5) / 10).toFixed(1);
    const first = `${many(E, "expert")}: ${grouped(before)} of ${grouped(facts)} facts known, ${percent}%.`;
    const rest = out >= 0 && out < E ? ` Without expert ${out}: ${grouped(lost)} forgotten, ${grouped(before - lost)} left.` : "";
    said.textContent = first + rest;
    canvas.setAttribute("aria-label", first + rest);
  }

  onTheme(root, paint);
  return show(el, root, ["shown", "out"], paint);
}

export default { render };
