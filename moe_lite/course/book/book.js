// Frames have the page's theme and their own height; what scrolls can be reached by key.
const theme = () => {
  const set = document.body.dataset.theme, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  return set === "dark" || (set !== "light" && dark) ? "dark" : "light";
};
const frames = document.querySelectorAll("iframe.widget");
const tell = (frame) => frame.contentWindow?.postMessage({ theme: theme() }, "*");
for (const frame of frames) frame.addEventListener("load", () => tell(frame));
addEventListener("message", ({ source, data }) => {
  for (const frame of frames)
    if (frame.contentWindow === source && data?.height) { frame.style.height = `${data.height + 4}px`; tell(frame); }
});
const retheme = () => frames.forEach(tell);
new MutationObserver(retheme).observe(document.body, { attributeFilter: ["data-theme"] });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", retheme);
for (const box of document.querySelectorAll("pre, .table-wrapper, math[display=block], .toc-scroll, .sidebar-scroll")) box.tabIndex = 0;
