// The experts' queues. Python sends the tokens, each one's choices and gates, and some orders of the
// batch; who comes when, and who is dropped, is computed here, so the page answers without a kernel.
// Five values travel either way: capacity, priority, shuffle, arrived, token.

const PRIORITIES = { position: "by position: token after token", choice: "by choice: all first choices, then all second", gate: "by gate: the largest gate first" };
const NTH = ["1st", "2nd", "3rd", "4th"], BEAT_MS = 260, WHOLE_MS = 15_000; // a beat, and all of them at most

/** Spells a token in a narrow place: what is written, unless it is all white. */
const brief = (text) => spell(text.trim() || text);

/** Lists the pairs in the order in which they come to their queues, each with its rank there. */
function queue(experts, gates, sent, order, priority, E) {
  const K = experts[0].length, T = order.length, length = new Array(E).fill(0), place = [];
  order.forEach((t, p) => { place[t] = p; });
  const key = {
    position: (t, k) => place[t] * K + k,
    choice: (t, k) => k * T + place[t],
    gate: (t, k) => -gates[t][k],
  }[priority];
  const pairs = experts.flatMap((row, t) => row.flatMap((e, k) => (sent[t][k] ? [{ t, k, e, key: key(t, k) }] : [])));
  pairs.sort((a, b) => a.key - b.key || place[a.t] - place[b.t] || a.k - b.k);
  for (const pair of pairs) pair.rank = length[pair.e]++;
  return { pairs, length };
}

function render({ model, el }) {
  const { get, set, on, slider, menu, button, player, atSight, show } = tie(model);
  const tokens = get("tokens"), experts = get("experts"), gates = get("gates"), sent = get("sent");
  const orders = get("orders"), colors = get("colors"), most = get("most");
  const T = tokens.length, K = experts[0].length, E = colors.length, N = sum(sent.flat());

  // --- controls
  const arrivals = slider("arrived", "Arrived", { min: 0, max: N }, (n) => `${n} of ${N}`, (n) => `${n} of ${N} choices`);
  const [play, step] = player("arrived", N, Math.min(BEAT_MS, WHOLE_MS / N), arrivals);
  if (get("arrived") === N) atSight(play);
  const controls = h("div.controls", {},
    slider("capacity", "Capacity", { min: 1, max: most }, (C) => `${C} (factor ${((C * E) / (T * K)).toFixed(2)})`, (C) => `${C} places for each expert`),
    menu("priority", "Who comes first", Object.entries(PRIORITIES)), arrivals,
    h("span.buttons", {}, play, step,
      button("Shuffle the batch", () => set({ shuffle: (get("shuffle") + 1) % orders.length }))));
  const said = h("p.said", { role: "status" });

  // --- the tokens
  const options = tokens.map((text, t) => {
    const marks = experts[t].map(() => h("i"));
    const option = h("span.tok", { role: "option", tabIndex: -1, "aria-selected": "false" }, h("b", {}, spell(text)), h("span.marks", {}, ...marks));
    on(option, "click", () => choose(t));
    return { option, marks };
  });
  const batch = h("div.batch", { role: "listbox", "aria-label": "Tokens in the order of the batch", "aria-orientation": "horizontal" });
  const choose = (t) => { set({ token: t }); options[t].option.focus({ preventScroll: true }); };
  on(batch, "keydown", (event) => {
    const order = orders[get("shuffle")], to = arrow(event, order.indexOf(get("token")), T - 1);
    if (to !== undefined) choose(order[to]);
  });

  // --- the queues
  const lanes = colors.map((color, e) => {
    const places = range(most).map(() => h("li"));
    const late = experts.flat().filter((other) => other === e).map(() => h("li"));
    const count = h("span.count"), stand = h("div.stand", {},
      h("ol.places", { "aria-label": `Places of expert ${e}` }, ...places),
      h("ol.late", { "aria-label": `Dropped by expert ${e}` }, ...late));
    stand.style.setProperty("--expert", color);
    on(stand, "click", (event) => {
      const slot = event.target.closest("li.full");
      if (slot) choose(Number(slot.dataset.token));
    });
    return { places, late, count, stand, row: h("div.lane", {}, chip(e), stand, count) };
  });

  // --- one token
  const heading = h("h2"), story = h("ul"), end = h("p.end");
  const root = h("div.expert-queues", {}, controls, said,
    h("div.two", {},
      h("section", {}, h("h2", {}, "The queues"),
        h("p.quiet", {}, "One row for each expert, one box for each place, up to the upright line. Below it, struck out and with a ✗: came when no place was left."),
        ...lanes.map((lane) => lane.row)),
      h("section", {}, h("h2", {}, "The batch"),
        h("p.quiet", {}, "Below each token the experts it chose, best first. Slanted: still to come."),
        batch, heading, story, end)));

  // --- painting
  let laid = -1;
  function paint() {
    const C = get("capacity"), arrived = get("arrived"), chosen = get("token"), order = orders[get("shuffle")];
    const { pairs, length } = queue(experts, gates, sent, order, get("priority"), E);
    if (laid !== get("shuffle")) {
      laid = get("shuffle");
      const focus = document.activeElement;
      batch.replaceChildren(...order.map((t) => options[t].option));
      if (batch.contains(focus)) focus.focus({ preventScroll: true });
    }

    // Who has come so far, and who found a place.
    const fate = experts.map((row) => row.map(() => "waiting")), came = new Array(E).fill(0);
    sent.forEach((row, t) => row.forEach((yes, k) => { if (!yes) fate[t][k] = "unsent"; }));
    pairs.forEach(({ t, k, e, rank }, n) => {
      if (n >= arrived) return;
      fate[t][k] = rank < C ? "kept" : "dropped";
      came[e]++;
      const slot = rank < C ? lanes[e].places[rank] : lanes[e].late[rank - C];
      slot.textContent = brief(tokens[t]) + (rank < C ? "" : " ✗");
      slot.dataset.token = t;
      slot.className = `full ${fate[t][k]}${t === chosen ? " chosen" : ""}${n === arrived - 1 && arrived < N ? " last" : ""}`;
      slot.title = `token ${t}, ${spell(tokens[t])}, ${NTH[k]} choice, rank ${rank}: ${fate[t][k]}`;
    });
    lanes.forEach(({ places, late, count, stand }, e) => {
      stand.style.setProperty("--places", C);
      const over = Math.max(0, came[e] - C);
      places.forEach((slot, n) => {
        slot.hidden = n >= C;
        if (n >= Math.min(C, came[e])) { slot.textContent = slot.title = slot.className = ""; }
      });
      late.forEach((slot, n) => { slot.hidden = n >= over; });
      count.textContent = `${came[e]} came${over ? `, ${over} dropped` : ""}`;
    });
    options.forEach(({ option, marks }, t) => {
      const fates = fate[t], real = fates.filter((f) => f !== "unsent");
      option.className = `tok${real.every((f) => f === "waiting") ? " waiting" : real.every((f) => f === "dropped") ? " lost" : ""}`;
      marks.forEach((mark, k) => {
        mark.textContent = fates[k] === "unsent" ? "–" : `${experts[t][k]}${fates[k] === "dropped" ? "✗" : ""}`;
        mark.className = fates[k];
        mark.style.setProperty("--expert", colors[experts[t][k]]);
      });
      option.setAttribute("aria-label", `token ${t}, ${spell(tokens[t])}: ${fates.map((f, k) => (f === "unsent" ? "second choice not sent" : `expert ${experts[t][k]} ${f}`)).join(", ")}`);
      option.setAttribute("aria-selected", String(t === chosen));
      option.tabIndex = t === (chosen < 0 ? order[0] : chosen) ? 0 : -1;
    });
    const kept = fate.flat().filter((f) => f === "kept").length, dropped = arrived - kept;
    const lost = fate.filter((row) => row.includes("dropped") && row.every((f) => f === "dropped" || f === "unsent")).length;
    said.textContent = `${arrived} of ${N} choices have come: ${kept} kept, ${dropped} dropped` +
      `${arrived ? ` (${((100 * dropped) / arrived).toFixed(0)}%)` : ""}. ${E * C - kept} of ${E * C} places empty. ` +
      `${lost} ${lost === 1 ? "token has" : "tokens have"} no expert at all.`;

    // The chosen token's story.
    if (chosen < 0) {
      heading.textContent = "Choose a token";
      story.replaceChildren();
      end.textContent = "Click one, here or in a queue, to see what becomes of its choices.";
      return;
    }
    heading.textContent = `Token ${chosen}: ${spell(tokens[chosen])}`;
    story.replaceChildren(...experts[chosen].map((e, k) => {
      const at = pairs.findIndex((pair) => pair.t === chosen && pair.k === k);
      const gate = `${NTH[k]} choice: expert ${e}, gate ${gates[chosen][k].toFixed(2)}`;
      if (at < 0) return h("li", {}, `${gate}; not sent`);
      const { rank } = pairs[at];
      const where = `comes as number ${at + 1}, rank ${rank} of ${length[e]} in the queue`;
      return h("li", {}, `${gate}; ${where}: `, h("strong", {}, at >= arrived ? "still to come" : rank < C ? `kept (${rank} < ${C})` : `dropped (${rank} ≥ ${C})`));
    }));
    const fates = fate[chosen];
    end.textContent = fates.includes("waiting") ? ""
      : fates.includes("kept") ? (fates.includes("dropped") ? "The layer gives it the kept expert's answer only, with the gate it had." : "")
      : "No expert sees it: the layer gives it 0, and it goes on as it came, along the residual.";
  }

  return show(el, root, ["capacity", "priority", "shuffle", "arrived", "token"], paint);
}

export default { render };
