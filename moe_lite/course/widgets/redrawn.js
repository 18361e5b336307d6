// Sliders and menus above a picture that Python draws: here nothing is computed. With a kernel each
// move asks it; a page without one holds the pictures of a grid of positions, by their places.

function render({ model, el }) {
  const { get, set, on, labelled, button, show } = tie(model);
  const near = (values, value) => Math.max(values.indexOf(value), typeof value === "number"
    ? best(values.map((v) => -Math.abs(v - value)), 1)[0] : 0);
  const controls = get("controls").map(([key, name, values, words]) => {
    const act = (at) => set({ [key]: values[at] }), last = values.length - 1;
    if (words === "button") {
      const press = button(name, () => act((near(values, get(key)) + 1) % values.length));
      return { key, values, part: press, follow() {} };
    }
    const listed = typeof values[0] === "string", output = h("output");
    const input = listed
      ? h("select", { "aria-label": name }, ...values.map((value) => h("option", { value }, value)))
      : h("input", { type: "range", min: 0, max: last, step: 1, "aria-label": name });
    on(input, listed ? "change" : "input", () => act(listed ? input.selectedIndex : Number(input.value)));
    const follow = (at) => {
      if (listed) return void (input.selectedIndex = at);
      if (Number(input.value) !== at) input.value = at;
      output.textContent = words?.[at] ?? String(values[at]);
      input.setAttribute("aria-valuetext", output.textContent);
    };
    return { key, values, part: labelled(name, input, ...(listed ? [] : [output])), follow };
  });
  const picture = h("div.picture", { role: "img", tabIndex: 0 }), said = h("p.said", { role: "status" });
  const root = h("div.redrawn", {}, h("div.controls", {}, ...controls.map((c) => c.part)), said, picture);

  function paint() {
    const at = controls.map(({ key, values }) => near(values, get(key)));
    controls.forEach((control, i) => control.follow(at[i]));
    const [svg, title] = get("pictures")?.[at.join()] ?? get("drawn");
    if (picture.dataset.shown === title + svg.length) return;
    picture.dataset.shown = title + svg.length;
    picture.replaceChildren(document.adoptNode(new DOMParser().parseFromString(svg, "image/svg+xml").documentElement));
    picture.setAttribute("aria-label", title);
    said.textContent = title;
  }
  return show(el, root, [...controls.map((c) => c.key), "drawn"], paint);
}

export default { render };
