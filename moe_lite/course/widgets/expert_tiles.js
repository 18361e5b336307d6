// Rows into expert tiles. Python sends the colours, and for each routing and number of experts whom
// the pairs chose; sorting, tiles and waves are computed here, so the page answers without a kernel.
// Five values travel either way: path, routing, experts, height, moved.

const TOKENS = 32, K = 2, N = TOKENS * K, PROCESSORS = 8; // as in expert_tiles.py
const PATHS = { loop: "loop: one expert after another", padded: "padded: as many rows for each", grouped: "grouped: the tiles there are" };
const ROUTINGS = ["balanced", "random", "zipf", "one-hot", "half empty"];
const EXPERTS = [2, 4, 8, 16], HEIGHTS = [1, 2, 4, 8, 16], BEAT_MS = 120;

/** Sorts the pairs, cuts the tiles and deals them to the processors. */
function lay({ path, experts: E, height: BM, expert }) {
  const load = range(E).map((e) => expert.filter((other) => other === e).length);
  const offsets = range(E + 1).map((e) => sum(load.slice(0, e)));
  const next = [...offsets], rows = expert.map((e) => next[e]++); // each pair's row: stable
  const most = Math.max(...load);
  const own = load.map((n, e) => range(Math.ceil((path === "padded" ? most : n) / BM))
    .map((i) => ({ e, first: offsets[e] + i * BM, used: Math.max(0, Math.min(BM, n - i * BM)) })));
  const tiles = own.flat(), waves = [];
  for (const launch of path === "loop" ? own : [tiles]) {
    for (let i = 0; i < launch.length; i += PROCESSORS) waves.push(launch.slice(i, i + PROCESSORS));
  }
  return { load, rows, own, tiles, waves };
}

function render({ model, el }) {
  const { get, slider, menu, player, show } = tie(model), choices = get("choices"), colors = get("colors");

  // --- controls
  const plain = (values) => values.map((value) => [value, String(value)]);
  const moves = slider("moved", "Moved", { min: 0, max: N }, (n) => `${n} of ${N}`, (n) => `${n} of ${N} pairs moved`);
  const controls = h("div.controls", {},
    menu("path", "Path", Object.entries(PATHS)), menu("routing", "Routing", plain(ROUTINGS)),
    menu("experts", "Experts", plain(EXPERTS)), menu("height", "Tile height", plain(HEIGHTS)),
    moves, h("span.buttons", {}, ...player("moved", N, BEAT_MS, moves)));

  // --- the three places
  const said = h("p.said", { role: "status" });
  const pairs = range(N).map((n) => h("li", {}, h("b"), h("i")));
  const before = h("ol.pairs", { "aria-label": "Pairs in token order" }, ...pairs);
  const lanes = h("div.lanes"), works = h("div.works");
  const root = h("div.expert-tiles", {}, controls, said,
    h("div.two", {},
      h("section", {}, h("h2", {}, "In token order"),
        h("p.quiet", {}, `${TOKENS} tokens, ${K} pairs each: the token's number, below it the expert's.`), before),
      h("section", {}, h("h2", {}, "In expert order, cut into tiles"),
        h("p.quiet", {}, "A line for each expert, a box for each tile. Hatched: padding, which is computed for nothing."),
        h("div.scroll", { tabIndex: 0, role: "region", "aria-label": "Tiles of each expert" }, lanes))),
    h("h2", {}, `On ${PROCESSORS} processors`),
    h("p.quiet", {}, "The three paths, the one shown above framed. A column for each wave, in it the expert of each processor's tile. Hatched: padding. A dash: nothing to do."),
    h("div.scroll", { tabIndex: 0, role: "region", "aria-label": "Processors" }, works));

  // --- painting
  const filled = (element, e, share) => {
    element.style.setProperty("--expert", colors[e]);
    element.style.setProperty("--share", `${Math.round(100 * share)}%`);
  };
  let drawn = "", slots = [];
  function paint() {
    const [path, routing, E, BM, moved] = ["path", "routing", "experts", "height", "moved"].map(get);
    const expert = choices[`${routing} ${E}`], lays = Object.keys(PATHS).map((path) => lay({ path, experts: E, height: BM, expert }));
    const found = lays[Object.keys(PATHS).indexOf(path)];
    const key = [path, routing, E, BM].join();
    if (key !== drawn) {
      drawn = key;
      pairs.forEach((pair, n) => {
        pair.firstChild.textContent = Math.floor(n / K);
        pair.lastChild.textContent = expert[n];
        filled(pair, expert[n], 1);
      });
      slots = [];
      lanes.replaceChildren(...found.own.map((own, e) => {
        const boxes = own.map((tile) => h("span.tile", {}, ...range(BM).map((i) => {
          const slot = h(i < tile.used ? "span.slot" : "span.slot.pad");
          if (i < tile.used) { slots[tile.first + i] = slot; filled(slot, e, 1); }
          return slot;
        })));
        return h("div.lane", {}, chip(e), h("span.tiles", {}, ...boxes),
          h("span.count", {}, `${found.load[e]} of ${own.length * BM}`));
      }));
      const useful = ({ waves }) => `${Math.floor((100 * N) / (PROCESSORS * waves.length * BM) + 0.5)}%`;
      works.replaceChildren(...lays.map(({ waves }, i) => h(lays[i] === found ? "table.shown" : "table", {},
        h("caption", {}, `${Object.keys(PATHS)[i]}: ${useful(lays[i])} useful`),
        h("thead", {}, h("tr", {}, h("td"), ...waves.map((_, w) => h("th", { scope: "col" }, String(w + 1))))),
        h("tbody", {}, ...range(PROCESSORS).map((p) => h("tr", {}, h("th", { scope: "row" }, h("span.unseen", {}, "processor "), String(p)),
          ...waves.map((wave) => {
            if (!wave[p]) return h("td.idle", {}, "–");
            const { e, used } = wave[p], cell = h("td.busy", { title: `expert ${e}, ${used} of ${BM} rows used` }, String(e));
            filled(cell, e, used / BM);
            return cell;
          })))))));
      const computed = found.tiles.length * BM, places = PROCESSORS * found.waves.length;
      said.textContent = `${N} of ${computed} computed rows hold a pair; ${many(found.tiles.length, "tile")} in ${many(found.waves.length, "wave")}, ` +
        `${many(places - found.tiles.length, "turn")} of a processor idle. Useful: ${useful(found)} of the processors' time.`;
    }
    pairs.forEach((pair, n) => { pair.className = n < moved ? "gone" : n === moved ? "next" : ""; });
    found.rows.forEach((row, n) => {
      slots[row].textContent = n < moved ? Math.floor(n / K) : "";
      slots[row].className = `slot${n < moved ? " full" : ""}${n === moved - 1 && moved < N ? " last" : ""}`;
    });
  }

  return show(el, root, ["path", "routing", "experts", "height", "moved"], paint);
}

export default { render };
