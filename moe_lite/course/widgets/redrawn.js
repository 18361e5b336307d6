// Sliders and menus above a picture that Python draws: here nothing is computed. With a kernel each
// move asks it; a page without one holds the pictures of a grid of positions, by their places.

function render({ model, el }) {
  const { get, show } = tie(model), controls = get("controls"), lists = {};
  for (const [key, , values] of controls) lists[key] ??= values;
  const near = (values, value) => Math.max(values.indexOf(value), typeof value === "number"
    ? best(values.map((v) => -Math.abs(v - value)), 1)[0] : 0);
  // The controls are tied to the places of the values in their lists.
  const set = (key, value) => model.set(key, value), place = (key) => near(lists[key], get(key));
  const places = tie({ get: place, set: (key, at) => set(key, lists[key][at]), save_changes: () => model.save_changes() });
  const parts = controls.map(([key, name, values, words]) => {
    if (typeof values[0] === "string") return places.menu(key, name, values.map((value, at) => [at, value]));
    if (words !== "button") return places.slider(key, name, { min: 0, max: values.length - 1 }, (at) => (values[at] === get(key) && words?.[at]) || String(+get(key).toPrecision(7)));
    return places.button(name, () => { set(key, values[(near(values, get(key)) + 1) % values.length]); model.save_changes(); });
  });
  const picture = h("div.picture", { role: "img", tabIndex: 0 }), said = h("p.said", { role: "status" });
  const root = h("div.redrawn", {}, h("div.controls", {}, ...parts), said, picture);

  function paint() {
    places.follow();
    const [svg, title] = get("pictures")?.[Object.keys(lists).map(place).join()] ?? get("drawn");
    if (picture.dataset.shown === title + svg.length) return;
    picture.dataset.shown = title + svg.length;
    picture.replaceChildren(document.adoptNode(new DOMParser().parseFromString(svg, "image/svg+xml").documentElement));
    picture.setAttribute("aria-label", title);
    said.textContent = title;
  }
  return show(el, root, [...Object.keys(lists), "drawn"], paint);
}

export default { render };
