
// What the kernel is to a notebook, this is to a page without one: it holds the state and tells
// who listens. Typed arrays arrive as base64 and leave as the DataView that Jupyter would give.
const state = JSON.parse(document.getElementById("state").textContent, (key, value) =>
  typeof value?.base64 === "string"
    ? new DataView(Uint8Array.from(atob(value.base64), (c) => c.charCodeAt(0)).buffer)
    : value,
);
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

const button = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const dark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
const relabel = () => { button.textContent = dark() ? "Light theme" : "Dark theme"; };
button.addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  relabel();
});
system.addEventListener("change", relabel);
relabel();
render({ model, el: document.getElementById("widget") });
