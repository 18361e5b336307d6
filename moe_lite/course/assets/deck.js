"use strict";
// Right, space, click: on (a vote first shows its answer). Left: back. N: notes. Home, End.
const slides = [...document.querySelectorAll("section")];
let at = Math.min(Math.max(parseInt(location.hash.slice(1), 10) || 1, 1), slides.length) - 1;
const over = (s) => s.scrollHeight > 721 || s.scrollWidth > 1281;
function fit(s) { // what is too much for a slide is set smaller; a test holds the least size
  for (let size = 28; size >= 16; size--) {
    s.style.fontSize = `${size}px`;
    if (!over(s)) break;
  }
}
function show() {
  slides.forEach((s, i) => s.classList.toggle("on", i === at));
  const s = slides[at], scale = Math.min(innerWidth / 1280, innerHeight / 720);
  s.style.transform = `translate(${(innerWidth - 1280 * scale) / 2}px, 0) scale(${scale})`;
  fit(s);
  document.getElementById("at").textContent = `${at + 1} / ${slides.length}`;
  history.replaceState(null, "", `#${at + 1}`);
}
function go(to) { at = Math.min(Math.max(to, 0), slides.length - 1); show(); }
function on() {
  const s = slides[at];
  if (s.querySelector(".vote") && !s.classList.contains("told")) s.classList.add("told");
  else go(at + 1);
}
addEventListener("keydown", (e) => {
  if (["ArrowRight", "PageDown", " "].includes(e.key)) on();
  else if (["ArrowLeft", "PageUp"].includes(e.key)) go(at - 1);
  else if (e.key === "Home") go(0);
  else if (e.key === "End") go(slides.length - 1);
  else if (e.key.toLowerCase() === "n") document.body.classList.toggle("noting");
  else return;
  e.preventDefault();
});
addEventListener("resize", show);
for (const img of document.images) img.addEventListener("load", () => fit(slides[at]));
show();
