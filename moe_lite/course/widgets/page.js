
// What the kernel is to a notebook, this is to a page without one: it holds the state and tells
// who listens. Bytes arrive deflated, in base64, and leave as the DataView that Jupyter would give.
const state = JSON.parse(document.getElementById("state").textContent), main = document.getElementById("widget");
if (!globalThis.DecompressionStream) main.textContent = "This page needs a browser of 2023 or newer.";
await inflate(state);

/** Puts what was packed back in its place. */
async function inflate(holder) {
  for (const [key, value] of Object.entries(holder)) {
    if (typeof value?.deflated === "string") {
      const packed = Uint8Array.from(atob(value.deflated), (c) => c.charCodeAt(0));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
      holder[key] = new DataView(await new Response(stream).arrayBuffer());
    } else if (value && typeof value === "object") await inflate(value);
  }
}

const listeners = {};
const model = {
  get: (key) => state[key],
  set(key, value) {
    if (state[key] === value) return;
    state[key] = value;
    for (const listener of listeners[`change:${key}`] ?? []) listener();
  },
  on: (event, listener) => (listeners[event] ??= new Set()).add(listener),
  off: (event, listener) => listeners[event]?.delete(listener),
  save_changes() {},
};

// The theme, which the page's head took from the system, is what the button last said.
const button = document.getElementById("theme"), page = document.documentElement.dataset;
const relabel = () => { button.textContent = page.theme === "dark" ? "Light theme" : "Dark theme"; };
const wear = (dark) => { page.theme = dark ? "dark" : "light"; relabel(); };
button.addEventListener("click", () => { wear(page.theme !== "dark"); button.dataset.chosen = ""; });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", ({ matches }) => { if (button.dataset.chosen === undefined) wear(matches); });
relabel();
render({ model, el: main });

// In a frame of the book: its theme, and as high as what is shown.
if (parent !== window) {
  document.body.classList.add("framed");
  addEventListener("message", ({ data }) => { if (data?.theme) wear(data.theme === "dark"); });
  new ResizeObserver(() => parent.postMessage({ height: document.body.scrollHeight }, "*")).observe(document.body);
}
