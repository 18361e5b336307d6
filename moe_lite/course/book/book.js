// Frames and charts have the page's theme, frames their own height; what scrolls can be reached by
// key. A classic script: a page opened from the disk may load no module.
{
  const theme = () => {
    const set = document.body.dataset.theme, dark = matchMedia("(prefers-color-scheme: dark)").matches;
    return set === "dark" || (set !== "light" && dark) ? "dark" : "light";
  };
  const frames = document.querySelectorAll("iframe.widget"), charts = document.querySelectorAll(".chart");
  const tell = (frame) => frame.contentWindow?.postMessage({ theme: theme() }, "*");
  const ink = () => {
    const color = getComputedStyle(document.body).color, line = color.replace("rgb(", "rgba(").replace(")", ", 0.2)");
    const axes = (chart) => Object.keys(chart.layout).filter((key) => /^[xy]axis\d*$/.test(key));
    return (chart) => ({
      paper_bgcolor: "transparent", plot_bgcolor: "transparent", "font.color": color,
      ...Object.fromEntries(axes(chart).flatMap((a) => [[`${a}.gridcolor`, line], [`${a}.zerolinecolor`, line]])),
    });
  };
  for (const frame of frames) frame.addEventListener("load", () => tell(frame));
  addEventListener("message", ({ source, data }) => {
    for (const frame of frames)
      if (frame.contentWindow === source && data?.height) { frame.style.height = `${data.height + 4}px`; tell(frame); }
  });
  for (const chart of charts) {
    const { data, layout, frames: states } = JSON.parse(chart.querySelector("script").textContent);
    Plotly.newPlot(chart, { data, layout: { ...layout, autosize: true }, frames: states, config: { responsive: true, displaylogo: false } })
      .then(() => Plotly.relayout(chart, ink()(chart)));
  }
  const retheme = () => {
    frames.forEach(tell);
    for (const chart of charts) if (chart.layout) Plotly.relayout(chart, ink()(chart));
  };
  new MutationObserver(retheme).observe(document.body, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", retheme);
  for (const box of document.querySelectorAll("pre, .table-wrapper, math[display=block], .output:has(> .figure-png), .toc-scroll, .sidebar-scroll")) box.tabIndex = 0;
  // What the theme's markup leaves unsaid to a screen reader.
  if (!document.querySelector("h1")) {
    const head = document.createElement("h1");
    head.textContent = document.title.split(" - ")[0];
    document.querySelector("article")?.prepend(head);
  }
  const aside = { ".sidebar-drawer": "Chapters", ".toc-drawer": "On this page" };
  for (const [at, name] of Object.entries(aside)) document.querySelector(at)?.setAttribute("aria-label", name);
  for (const caption of document.querySelectorAll(".caption[role=heading]")) caption.ariaLevel = 2;
  for (const head of document.querySelectorAll("th.head")) if (!head.textContent.trim()) head.replaceWith(document.createElement("td"));
}
