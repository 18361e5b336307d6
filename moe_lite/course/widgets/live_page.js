// The live page: what is typed goes to a worker, and what comes back is set as a kernel would set
// it, so that all below draws itself. One wish at a time; of those that wait, the last.
{ // a block: what stands above has names of its own
const source = new Blob([document.getElementById("worker").textContent], { type: "text/javascript" });
const worker = new Worker(URL.createObjectURL(source)), reel = state.reel;
const { layer_names, num_experts, colors, queues } = state, own = { layer_names, num_experts, colors, queues };
let busy = true, waiting = null, edited = false, writing = false, latest = null, turn = 0; // how often a text was given or a question

function send(wish) {
  if (busy && !writing) {
    if (wish.turn || !waiting?.turn) waiting = { ...wish, text: wish.text ?? waiting?.text };
    return;
  }
  [busy, writing, waiting, edited] = [true, wish.act === "write", null, false];
  write.textContent = writing ? "Stop" : "Write on";
  worker.postMessage(wish);
}
const text = () => (edited ? typing.value : undefined), cut = () => state.selected;
const show = () => send({ act: "show", turn: ++turn, text: text(), question: state.question, cut: cut(), recall: wanted() && name() });
const go = (count, take) => send({ act: "write", turn: ++turn, text: text(), question: state.question, count, take, temperature: Number(warmth.value), seed: Math.floor(2 ** 32 * Math.random()) });

// --- the panel above the explorer
const { on, button, menu, labelled } = tie(model);
const typing = h("textarea", { rows: 3, value: state.text, spellcheck: false, "aria-label": "Type any text" });
const warmth = h("input", { type: "range", min: 0, max: 1.5, step: 0.1, value: 0.8, "aria-label": "Temperature" }), warm = h("output", {}, "0.8");
const said = h("span.quiet", { role: "status" }, "The model is being unpacked …"), wrong = h("p.problem", { role: "alert" });
const press = (words, act) => Object.assign(button(words, act), { className: "act" });
const write = press("Write on", () => (writing ? send({ act: "stop" }) : go(200))), step = press("One token", () => go(1));
const film = press("The film of its training", () => (state.film.steps ? still() : roll()));
const begin = menu("", "Begin with", [["", "…"], ...state.openings.map(([name, words]) => [words, name])], give);
[film.hidden, begin.hidden] = [!reel.film, !state.openings.length];
// The phone book: the number that the text asks for, if it ends with a name of the book and a colon.
const book = new Map(state.book), names = [...book.keys()];
const asks = (name) => { const before = names.at(names.indexOf(name) - 1); return `${before}: ${book.get(before)}\n${name}: `; };
const name = () => /(\S+ \S+): ?$/.exec(typing.value)?.[1], wanted = () => book.get(name());
const dial = menu("", "Ask for the number of", [["", "…"], ...state.offered.map((name) => [name, name])], (name) => give(name && asks(name)));
const field = h("input", { size: 18, placeholder: "any other name", autocomplete: "off", "aria-label": "or of any other name of the book" });
attr(field, { list: "names" });
const asking = h("div.form", { hidden: !names.length }, dial, labelled("or of", field), h("datalist", { id: "names" }, ...names.map((value) => h("option", { value }))),
  h("span.quiet", {}, "Asked after another entry, as the book was read: alone, a name is hardly known."));
const spoken = h("output"), without = h("select", { "aria-label": "Take out an expert that the name went to" });
const recall = h("p.recall", { hidden: true }, spoken, " ", labelled("Take out", without), " ", h("span.quiet", {}, "Each served the name; many, taken out, change nothing."));
function judge({ said, changed, by }) {
  const number = wanted(), mark = (text) => { const digits = text.trim().slice(0, number.length); return `${digits} ${digits === number ? "✓ right" : "✗ wrong"}`; };
  recall.hidden = false;
  spoken.textContent = `Untouched the model says ${mark(said)}.${changed === undefined ? "" : ` As you changed it: ${mark(changed)}.`}`;
  const option = (l) => (e) => h("option", { value: JSON.stringify([["ablate", l, e, -1, 0, null]]) }, `expert ${e} of layer ${l}`);
  without.replaceChildren(h("option", { value: "[]" }, "no expert"), ...by.map((experts, l) => h("optgroup", { label: `Layer ${l}` }, ...experts.map(option(l)))));
  without.value = JSON.stringify(state.question);
}
const likely = h("div.likely", { role: "group", "aria-label": "The likeliest next tokens; press one to take it" });
const panel = h("section.routing-explorer.moe.live", { "aria-label": "Your text" }, typing, wrong, asking, recall, likely,
  h("div.controls", {}, write, step, labelled("Temperature", warmth, warm), begin, film, said));
main.before(panel);
main.after(h("details.routing-explorer.moe.live", {}, h("summary", {}, "What this page is"), h("p", {},
  "The whole model is in this file and runs in your browser: nothing is fetched and nothing is sent. ", state.about,
  " Its forward pass and its tokenizer are two short files of JavaScript; read them in this page’s source.")));

function type() { edited = recall.hidden = true; show(); }
function give(words) { if (words) { typing.value = words; type(); } }
on(typing, "input", type);
on(field, "input", () => { if (book.has(field.value.trim())) give(asks(field.value.trim())); });
on(field, "change", () => { wrong.textContent = !field.value || book.has(field.value.trim()) ? "" : `The phone book has no “${field.value}”.`; });
on(without, "change", () => model.set("question", JSON.parse(without.value)));
on(warmth, "input", () => { warm.textContent = Number(warmth.value).toFixed(1); });
on(typing, "keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); write.click(); } });

// --- what comes back: a new text builds the explorer anew, once all of it is in place
function apply({ tokens, beside, ...rest }) {
  if (!tokens) for (const [key, value] of Object.entries(rest)) model.set(key, value);
  Object.assign(state, rest);
  if (beside && (beside.tokens || state.beside.tokens)) model.set("beside", beside.tokens ? { ...own, ...beside, source: "changed" } : {});
  if (tokens) model.set("tokens", tokens);
}

worker.onmessage = ({ data: { turn: of, traits, free, ...told } }) => {
  // What belongs to an older text or question is dropped; not the trace, which shows its own tokens.
  const { ready, took, ran, written, rate, made, next, ended, problem, recalled } = of === turn ? told : {};
  if (of === turn) wrong.textContent = problem ?? "";
  if (problem) { likely.replaceChildren(); said.textContent = ""; }
  if (written !== undefined) typing.value = written, recall.hidden = true;
  if (recalled) judge(recalled);
  if (traits) {
    const { tokens } = traits, at = state.film.steps ? -1 : state.selected;
    latest = { ...latest, ...traits };
    if (tokens && !state.film.steps) state.selected = at < 0 || at >= Math.min(state.tokens.length, tokens.length) - 1 ? tokens.length - 1 : at; // the end is followed
    if (!state.film.steps) apply(traits);
  }
  if (next) likely.replaceChildren(h("span", {}, "Next:"), ...next.map(([id, word, share]) => {
    const take = press("", () => { if (of === turn) go(1, id); });
    take.append(h("bdi", {}, spell(word)), h("span.quiet", {}, ` ${percent(share, 0)}`));
    return take;
  }));
  if (took !== undefined) said.textContent = `${many(ran, "token")}, answered in ${took.toFixed(0)} ms`;
  if (rate) said.textContent = `${many(made, "token")} written, ${rate.toFixed(0)} a second`;
  if (ready) said.textContent = "Ready: type.";
  if (ended) said.textContent += "; then the model ended the text";
  if (!free) return;
  [busy, writing] = [false, false];
  write.textContent = "Write on";
  if (waiting) send(waiting);
};
worker.onerror = (event) => { wrong.textContent = `The model stopped: ${event.message}`; };
model.on("change:question", () => { spoken.textContent = "The model is being asked …"; show(); });
model.on("change:selected", () => { if (state.question.length && !writing && !edited) send({ act: "again", question: state.question, cut: cut() }); });

// --- the film takes the text's place, and gives it back
function roll() {
  latest ??= Object.fromEntries(["tokens", "arrays", "data", "answers", "answer", "beside"].map((key) => [key, state[key]]));
  Object.assign(state, { frame: reel.film.steps.length - 1, selected: -1, layer: Math.min(state.layer, reel.layer_names.length - 1) });
  apply({ ...reel, beside: {}, answers: {} });
  film.textContent = "Back to the text";
}
function still() {
  Object.assign(state, { frame: 0, selected: latest.tokens.length - 1 });
  apply({ film: {}, ...own, ...latest });
  film.textContent = "The film of its training";
}

worker.postMessage({ act: "load", turn, bytes: state.weights.buffer, layout: state.layout, config: state.config, vocabulary: state.vocabulary }, [state.weights.buffer]);
delete state.weights;
}
