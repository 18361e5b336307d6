// What the widgets share. portable.py puts this file before each widget's own module, and the two
// are one scope: a name that stands alone here cannot be declared there.

const DRAWN = new Set(["svg", "g", "circle", "path", "text", "line", "rect", "polygon"]);

/** Makes an element; text goes in as text nodes, so no token is ever read as markup. */
function h(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split("."), drawn = DRAWN.has(name);
  const element = drawn ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  if (classes.length) element.setAttribute("class", classes.join(" "));
  for (const [key, value] of Object.entries(props)) {
    if (!drawn && key in element && !key.startsWith("aria")) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** Sets several attributes. */
function attr(element, values) {
  for (const [key, value] of Object.entries(values)) element.setAttribute(key, value);
}

/** An expert's number, for the eye and for a voice. */
const chip = (e) => h("span.chip", {}, h("span.unseen", {}, "expert "), String(e));

// ------------------------------------------------------------------------------------- numbers

const sum = (xs) => xs.reduce((a, b) => a + b, 0);
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const range = (n) => Array.from({ length: n }, (_, i) => i);

/** The places of the n largest, best first; of equals, the first. */
const best = (xs, n) => range(xs.length).sort((a, b) => xs[b] - xs[a] || a - b).slice(0, n);

function softmax(logits) {
  const top = Math.max(...logits), exps = logits.map((x) => Math.exp(x - top)), total = sum(exps);
  return exps.map((x) => x / total);
}

/** Copies a part of a DataView, which may lie at any offset, so that typed arrays align. */
const cut = (view, begin = 0, end = view.byteLength) =>
  new Uint8Array(view.buffer, view.byteOffset + begin, end - begin).slice().buffer;

// --------------------------------------------------------------------------------------- words

const signed = (x, digits) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(digits)}`;
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}%`;
const many = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

/** Spells a token on one line, its white space visible. */
const spell = (text) =>
  text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";

// ------------------------------------------------------------------------------------- colours

const rgb = (color) => [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));

/** Black or white, whichever can be read on a colour: one of them always has contrast 4.5. */
function inkOn(color) {
  const [r, g, b] = rgb(color).map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}

// ------------------------------------------------------------------------------------ pictures

/** Where in a picture that is wide x high units an event happened. */
function within(picture, wide, high, event) {
  const box = picture.getBoundingClientRect();
  return [((event.clientX - box.left) * wide) / box.width, ((event.clientY - box.top) * high) / box.height];
}

/** An arrow, to be drawn: a shaft and a head. */
const shot = () => ({ shaft: h("line.shaft"), head: h("polygon.head") });

/** Draws an arrow from a place to another; one that is too short is hidden. */
function point({ shaft, head }, from, to) {
  const long = Math.hypot(to[0] - from[0], to[1] - from[1]), shown = long > 1.5;
  shaft.style.display = head.style.display = shown ? "" : "none";
  if (!shown) return;
  const u = [(to[0] - from[0]) / long, (to[1] - from[1]) / long], wide = Math.min(6, long / 2);
  const foot = to.map((v, d) => v - 1.6 * wide * u[d]);
  attr(shaft, { x1: from[0], y1: from[1], x2: foot[0], y2: foot[1] });
  head.setAttribute("points", [to, [foot[0] - wide * u[1], foot[1] + wide * u[0]], [foot[0] + wide * u[1], foot[1] - wide * u[0]]].map((q) => q.join()).join(" "));
}

/** Empties a canvas of this size in CSS pixels, as sharp as the screen; gives its context. */
function sheet(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1, context = canvas.getContext("2d");
  const [wide, high] = [width, height].map((pixels) => Math.round(pixels * ratio));
  if (canvas.width !== wide || canvas.height !== high) {
    canvas.width = wide;
    canvas.height = high;
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

// ---------------------------------------------------------------------------------------- keys

/** Where an arrow, Home or End leads from one of several places in a row; undefined: no such key. */
function arrow(event, at, last) {
  const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last }[event.key];
  if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return undefined;
  event.preventDefault();
  return clamp(to, 0, last);
}

// -------------------------------------------------------------------------------- page and model

/** Ties a page to its model: gives what reads and sets the model's values, controls that follow
 *  them, and `show` (or `live`), which ends render: what it returns takes everything away. */
function tie(model) {
  const stop = new AbortController(), frames = new Map(), followers = [];
  const get = (key) => model.get(key);
  const set = (changes) => {
    for (const [key, value] of Object.entries(changes)) model.set(key, value);
    model.save_changes();
  };
  const on = (target, type, act, more) => target.addEventListener(type, act, { signal: stop.signal, ...more });
  const atEnd = (act) => stop.signal.addEventListener("abort", act);

  /** Paints in the next frame: several changes until then cost one painting. */
  function soon(paint) {
    if (!frames.has(paint)) frames.set(paint, requestAnimationFrame(() => { frames.delete(paint); paint(); }));
  }

  /** Calls act when root has its colours (a host may call render before it lays root out), and
   *  whenever the theme changes: whatever turns it, in whatever host, turns the ink; and that, says
   *  common.css, is a (brief) transition. */
  function onTheme(root, act) {
    const laid = new ResizeObserver(() => { laid.disconnect(); act(); });
    laid.observe(root);
    atEnd(() => laid.disconnect());
    // Where a host hides what is off screen, no transition runs there: look again on its return.
    let ink = "";
    const seen = new IntersectionObserver(() => {
      const now = getComputedStyle(root).color + getComputedStyle(root).backgroundColor;
      if (now !== ink) { ink = now; act(); }
    });
    seen.observe(root);
    atEnd(() => seen.disconnect());
    for (const type of ["transitionend", "transitioncancel"])
      on(root, type, (event) => { if (event.target === root) act(); });
  }

  // --- controls: each is tied to one value

  const labelled = (name, ...parts) => h("label", {}, h("span", {}, name), ...parts);

  /** A slider, its value beside it in words; `voice`: the words that are read out. */
  function slider(key, name, props, words = String, voice = words) {
    const input = h("input", { type: "range", step: 1, "aria-label": name, ...props }), output = h("output");
    on(input, "input", () => set({ [key]: Number(input.value) }));
    followers.push(() => {
      const value = get(key);
      if (Number(input.value) !== value) input.value = value;
      output.textContent = words(value);
      input.setAttribute("aria-valuetext", voice(value));
    });
    return labelled(name, input, output);
  }

  /** A menu of [value, text]. */
  function menu(key, name, options, choose = (value) => set({ [key]: value })) {
    const select = h("select", { "aria-label": name }, ...options.map(([value, text]) => h("option", { value }, text)));
    on(select, "change", () => choose(options[select.selectedIndex][0]));
    followers.push(() => { select.value = get(key); });
    return labelled(name, select);
  }

  function button(text, act) {
    const element = h("button", { type: "button" }, text);
    on(element, "click", act);
    return element;
  }

  /** Play: takes a step at each beat, until one says that it was the last; `begin` comes before the
   *  first. What is told meanwhile is not read out. Gives the button, and what halts it. */
  function repeat(step, beat, begin = () => {}) {
    let timer = 0;
    const halt = () => { clearInterval(timer); timer = 0; wear("Play"); };
    const wear = (text) => {
      play.textContent = text;
      play.closest(".controls")?.parentNode.querySelector("[role=status]")?.setAttribute("aria-busy", timer > 0);
    };
    const play = button("Play", () => {
      if (timer) return halt();
      begin();
      timer = setInterval(() => { if (step()) halt(); }, beat);
      wear("Pause");
    });
    atEnd(halt);
    return [play, halt];
  }

  /** Play and Step: they count a value up to its end. Whoever moves its slider halts them. */
  function player(key, end, beat, label) {
    const step = () => { set({ [key]: Math.min(end, get(key) + 1) }); return get(key) === end; };
    const [play, halt] = repeat(step, beat, () => { if (get(key) === end) set({ [key]: 0 }); });
    on(label, "input", halt);
    return [play, button("Step", () => { halt(); step(); })];
  }

  /** Presses a button when it first comes into view, unless its reader wants no motion. */
  function atSight(play) {
    const seen = new IntersectionObserver((entries) => { if (entries.at(-1).isIntersecting) { seen.disconnect(); play.click(); } });
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) seen.observe(play);
    atEnd(() => seen.disconnect());
  }

  // --- the end of render

  /** Does what these changes ask for (key -> act) until it is called off; then root goes too. */
  function live(root, changes) {
    for (const [key, act] of Object.entries(changes)) model.on(`change:${key}`, act);
    // What is typed here is not for the notebook around it, whose `d d` deletes a cell; but
    // Shift+Enter still runs the cell, and whatever is held with Ctrl, Alt or Cmd passes.
    on(root, "keydown", (event) => {
      if (!event.ctrlKey && !event.metaKey && !event.altKey && !(event.key === "Enter" && event.shiftKey)) event.stopPropagation();
    });
    return () => {
      stop.abort();
      for (const frame of frames.values()) cancelAnimationFrame(frame);
      for (const [key, act] of Object.entries(changes)) model.off(`change:${key}`, act);
      root.remove();
    };
  }

  /** Takes a guess, a number or a word, where Python has a question: the moves that it asks about are
   *  made only then, and the browser remembers the guess, where it may, beside the answer. */
  function guess() {
    const { ask, moves, answer, least = 0, most, step } = get("guess") ?? {}, name = `moe-lite: ${ask}`, word = typeof answer === "string";
    if (!ask) return [];
    let made = null; // in words; a page that may keep nothing keeps it until it is left
    try { made = localStorage.getItem(name); } catch { /* so */ }
    const kind = word ? { size: 12 } : { type: "range", min: least, max: most, step, value: (least + most) / 2 };
    const input = h("input", { ...kind, "aria-label": "Your guess", "aria-description": ask }), output = h("span.value", { hidden: word });
    const bar = h("i"), mark = h("u"), said = h("span.guessed", { "aria-live": "polite" });
    const open = h("span.controls", {}, input, output, button("Guess", () => {
      made = input.value;
      try { localStorage.setItem(name, made); } catch { /* so */ }
      set(moves);
      tell();
      again.focus();
    }));
    const again = button("Guess again", () => { made = null; said.textContent = ""; tell(); input.focus(); });
    const closed = h("span.controls", {}, h("span.track", { "aria-hidden": "true", hidden: word }, bar, mark), said, again);
    const tell = () => {
      output.textContent = input.value;
      [open.hidden, closed.hidden] = [made !== null, made === null];
      if (made === null) return;
      said.textContent = word ? `You guessed “${made.trim()}”; it is “${spell(answer)}”.` : `You guessed ${made}; it is ${answer}.`;
      [bar.style.width, mark.style.left] = [answer, made].map((x) => `${(100 * clamp(x, 0, most)) / most}%`);
    };
    on(input, "input", tell);
    tell();
    return [h("div.guess", { role: "group", "aria-label": "A guess before you look" }, h("strong", {}, ask), open, closed)];
  }

  /** Puts root into el, paints it now, and in the next frame whenever a value of these changes. */
  function show(el, root, keys, paint) {
    root.querySelector(".controls").after(...guess());
    const all = () => { paint(); follow(); };
    const end = live(root, Object.fromEntries(keys.map((key) => [key, () => soon(all)])));
    el.append(root);
    all();
    return end;
  }

  const follow = () => { for (const each of followers) each(); };

  return { get, set, on, atEnd, soon, onTheme, labelled, slider, menu, button, repeat, player, atSight, follow, guess, live, show };
}
