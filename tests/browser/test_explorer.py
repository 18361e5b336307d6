"""The explorer as a learner meets it: by mouse, by keyboard, in both themes, with no network."""

import base64
import re
import statistics
import time

import pytest
import torch

from moe_lite.course import viz
from moe_lite.course.widgets import RoutingExplorer
from moe_lite.routing import Routing
from moe_lite.trace import RoutingTrace

TOKENS = ["HAM", "LET", ".", " To", " be", ",", " or", " not", " to", " be", "\n", "def", " f",
          "(", "x", "):", "\n\n", "    ", "return", " x", "はじめ", "😀", " שלום", " ", "e",
          "\u0301"]  # fmt: skip


def selected(page):
    """Give the token that the page marks as selected."""
    marked = page.locator('[role=option][aria-selected="true"]')
    assert marked.count() <= 1
    return int(marked.get_attribute("data-t")) if marked.count() else -1


def layer(page):
    return int(page.locator(".controls output").inner_text())


def sentence(trace, n, t):
    """Say what the page should say, from the trace alone."""
    r = trace.layers[n]
    pairs = [i for i in range(len(r.token_N)) if r.token_N[i] == t]
    return ", ".join(f"expert {r.expert_N[i]} with {r.gate_N[i]:.2f}" for i in pairs)


def bars(page):
    """Read the gate bars: (expert, probability, weight) as printed."""
    rows = page.locator(".one .bar:visible")
    return [
        tuple(row.locator(part).inner_text() for part in (".chip", ".value", ".weight"))
        for row in rows.all()
    ]


def test_a_click_shows_where_a_token_went(open_page, make_trace):
    trace = make_trace(TOKENS)
    page = open_page(RoutingExplorer(trace, layer=1))
    assert selected(page) == -1
    assert page.locator(".one h2").inner_text() == "Click on a token"
    page.locator(".tok").nth(4).click()
    assert selected(page) == 4
    said = page.locator(".one h2").inner_text()
    assert said == f"Token “␣be”, layer 1: {sentence(trace, 1, 4)}."
    assert page.locator(".one [aria-live]").inner_text() == said.replace("␣", "")
    routing = trace.layers[1]
    gate_E = routing.gates_TE()[4]
    for e, (number, prob, weight) in enumerate(bars(page)):
        assert number.split()[-1] == str(e)
        assert prob == f"{routing.probs_TE[4, e]:.3f}"
        assert weight == (f"× {gate_E[e]:.3f}" if gate_E[e] else "")
    for n, r in enumerate(trace.layers):
        chips = page.locator(".strip button").nth(n).locator(".chip").all_inner_texts()
        assert chips == [str(e) for e in r.expert_N.view(-1, 2)[4].tolist()]
    page.locator(".strip button").nth(3).click()
    assert layer(page) == 3
    assert page.locator(".one h2").inner_text().endswith(f"layer 3: {sentence(trace, 3, 4)}.")


RECORD = """
const write = CanvasRenderingContext2D.prototype.fillText;
window.written = [];
CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
  if (this.canvas.className === "numbers") window.written.push([String(text), x, y]);
  write.apply(this, arguments);
};
"""


def wait_until(page, question, arg):
    """Ask from outside until it is so: the page's policy forbids wait_for_function's eval."""
    end = time.monotonic() + 900  # a limit for what hangs, not for what is slow
    while not page.evaluate(question, arg):
        assert time.monotonic() < end, f"it never came true: {question}"
        page.settle()


def test_colours_and_numbers_are_the_first_experts(open_page, make_trace):
    trace = make_trace(TOKENS)
    page = open_page(RoutingExplorer(trace), script=RECORD)
    colors = viz.expert_colors(8)
    for n in (2, 0):
        first = viz.first_experts(trace.layers[n])
        page.evaluate("window.written = []")
        page.locator(".layer input").fill(str(n))
        wait_until(page, "n => window.written.length >= n", len(TOKENS))
        assert [text for text, *_ in page.evaluate("window.written")] == [str(e) for e in first]
        lines = page.locator(".tok").evaluate_all(
            "toks => toks.map(t => getComputedStyle(t.querySelector('b')).borderBottomColor)"
        )
        assert [bytes(map(int, re.findall(r"\d+", line))).hex().upper() for line in lines] == [
            colors[e][1:] for e in first
        ]
    # each number stands below its token
    boxes = page.locator(".tok").evaluate_all(
        """toks => { const box = document.querySelector(".numbers").getBoundingClientRect();
        return toks.map(t => t.querySelector("b").getClientRects()[0])
          .map(r => [r.left - box.left, r.right - box.left, r.bottom - box.top]) }"""
    )
    for (_, x, y), (left, right, bottom) in zip(
        page.evaluate("window.written"), boxes, strict=True
    ):
        assert left <= x <= right and bottom <= y <= bottom + 6
    page.get_by_label("expert numbers").uncheck()
    page.locator(".numbers").wait_for(state="hidden")


def test_hovering_previews_and_leaving_forgets(open_page, make_trace):
    trace = make_trace(TOKENS)
    page = open_page(RoutingExplorer(trace, selected=3))
    page.locator(".tok").nth(7).hover()
    page.get_by_text(f"Token “␣not”, layer 0: {sentence(trace, 0, 7)}.").wait_for()
    assert selected(page) == 3
    page.locator(".help").hover()
    page.get_by_text(f"Token “␣To”, layer 0: {sentence(trace, 0, 3)}.").first.wait_for()


def test_a_click_on_the_map_chooses_token_and_layer(open_page, make_trace):
    trace = make_trace(TOKENS)
    page = open_page(RoutingExplorer(trace))
    canvas = page.locator(".frame canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    cell = min(24, (box["width"] - 31) / len(TOKENS))
    canvas.click(position={"x": 30 + 8.5 * cell, "y": 8 + 2.5 * 22})
    assert (selected(page), layer(page)) == (8, 2)
    # and the pixel there has the colour of the token's expert (its number is drawn mid-cell)
    pixel = canvas.evaluate(
        "(c, [x, y]) => { const s = devicePixelRatio;"
        " return [...c.getContext('2d').getImageData(x * s, y * s, 1, 1).data].slice(0, 3) }",
        [30 + 5.5 * cell + 0.3 * cell, 8 + 3 * 22 + 3],
    )
    color = viz.expert_colors(8)[viz.first_experts(trace.layers[3])[5]]
    assert pixel == list(bytes.fromhex(color[1:]))


def test_the_filter_keeps_one_experts_tokens(open_page, make_trace):
    trace = make_trace(TOKENS)
    page = open_page(RoutingExplorer(trace, layer=2))
    rows = page.locator(".load .bar")
    routing = trace.layers[2]
    load_E, mass_E = routing.load_E(), routing.gates_TE().sum(0)
    for e in range(8):
        mass = rows.nth(e).locator(".mass").inner_text().rstrip("%")
        assert float(mass) == pytest.approx((100 * mass_E[e] / mass_E.sum()).item(), abs=0.06)
        assert (
            rows.nth(e).locator(".value").inner_text() == f"{100 * load_E[e] / load_E.sum():.1f}%"
        )
        assert rows.nth(e).locator(".count").inner_text() == f"{load_E[e]:.0f}"
    e = int(load_E.argmax())
    rows.nth(e).click()
    assert rows.nth(e).get_attribute("aria-pressed") == "true"
    got = {int(t) for t, to in zip(routing.token_N, routing.expert_N, strict=True) if to == e}
    lit = page.locator(".tok:not(:has(.dim))").evaluate_all(
        "toks => toks.map(t => Number(t.dataset.t))"
    )
    assert set(lit) == got
    share = (
        f"Expert {e} got {len(got)} of {len(TOKENS)} tokens ({100 * len(got) / len(TOKENS):.1f}%)"
    )
    assert page.locator("[role=status]").inner_text() == share
    page.get_by_role("button", name="Show all").click()
    assert page.locator(".tok > .dim").count() == 0
    rows.nth(e).click()
    rows.nth(e).click()  # twice: off again
    assert page.locator(".tok > .dim").count() == 0


def test_everything_is_within_reach_of_the_keyboard(open_page, make_trace):
    trace = make_trace(TOKENS)
    page = open_page(RoutingExplorer(trace), width=600)
    focus = "document.activeElement.getAttribute('role') ?? document.activeElement.type"
    for _ in range(6):
        page.keyboard.press("Tab")
        if page.evaluate(focus) == "option":
            break
    assert page.evaluate(focus) == "option" and selected(page) == -1
    page.keyboard.press("Enter")
    assert selected(page) == 0
    for key, token in [("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 25),
                       ("ArrowRight", 25), ("Home", 0), ("ArrowLeft", 0), (" ", 0)]:  # fmt: skip
        page.keyboard.press(key)
        assert selected(page) == token, key
        assert page.evaluate("Number(document.activeElement.dataset.t)") == token
    page.keyboard.press("ArrowDown")  # the line below begins with token 11
    assert selected(page) == 11
    page.keyboard.press("ArrowDown")
    assert selected(page) == 17  # the indented line; the line break above it is its own token
    page.keyboard.press("ArrowUp")
    assert 11 <= selected(page) <= 16
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Shift+ArrowDown")
    assert layer(page) == 2
    page.keyboard.press("Shift+ArrowUp")
    assert layer(page) == 1
    page.keyboard.press("5")
    assert page.locator(".load .bar[aria-pressed=true]").inner_text().split()[1] == "5"
    page.keyboard.press("Escape")
    assert page.locator(".load .bar[aria-pressed=true]").count() == 0
    assert selected(page) >= 0
    page.keyboard.press("Escape")
    assert selected(page) == -1
    assert page.locator(".tok[tabindex='0']").count() == 1
    # one stop for the strip and one for the load bars, arrows inside
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert layer(page) == 2
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator(".one tbody tr").nth(7).wait_for()  # all layers in numbers
    for _ in range(3):  # past the guess: its slider and its button
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator(".load .bar").nth(1).get_attribute("aria-pressed") == "true"


def test_two_digits_name_one_expert(open_page, make_trace):
    page = open_page(RoutingExplorer(make_trace(TOKENS, E=64, K=8), selected=0))
    page.locator(".tok").first.focus()
    page.keyboard.type("37")
    assert page.locator("[role=status]").inner_text().startswith("Expert 37 got ")


NASTY = ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "\u2028", "&amp;",
         "\x00", "\u200b", "", "\t"]  # fmt: skip


def test_a_token_is_only_ever_text(open_page, make_trace):
    page = open_page(RoutingExplorer(make_trace(NASTY), selected=0))
    assert page.locator("img").count() == 0
    shown = page.locator(".tok").evaluate_all("toks => toks.map(t => t.textContent)")
    assert shown == [*NASTY[:4], "U+0000", "U+200B", "∅", "\t"]
    said = page.locator(".one h2").inner_text()
    assert said.startswith(f"Token “{NASTY[0]}”, layer 0".replace("img src=x ", "img␣src=x␣"))
    widths = page.locator(".tok b").evaluate_all("b => b.map(x => x.getBoundingClientRect().width)")
    assert min(widths[3:]) > 3  # each can be clicked on


def test_the_text_reads_as_it_was(open_page, make_trace):
    page = open_page(RoutingExplorer(make_trace(TOKENS)))
    text = page.locator(".tokens").evaluate("box => box.textContent")
    assert text.replace("◌", "") == "".join(TOKENS)


def uneven():
    """Experts choose, capacity drops: tokens with 0, 1 and 3 experts; probabilities are sigmoid."""
    token_N, expert_N = torch.tensor([0, 0, 0, 1, 3]), torch.tensor([0, 1, 2, 1, 0])
    gate_N = torch.tensor([0.2, 0.9, 0.5, 0.7, 0.4])
    keep_N = torch.tensor([True, True, False, False, True])
    logits_TE = torch.linspace(-2, 2, 12).view(4, 3)
    first = Routing(logits_TE, logits_TE.sigmoid(), token_N, expert_N, gate_N, keep_N)
    single = Routing.from_choices(
        torch.zeros(4, 1), torch.ones(4, 1), torch.zeros(4, 1, dtype=torch.long), torch.ones(4, 1)
    )
    return RoutingTrace(["a", " b", " c", " d"], (first, single), ("0", "1"), "a test")


def test_dropped_and_unchosen_tokens_say_so(open_page):
    page = open_page(RoutingExplorer(uneven()))
    said = []
    for t in range(4):
        page.locator(".tok").nth(t).click()
        said.append(page.locator(".one h2").inner_text().partition(": ")[2])
    assert said == [
        "expert 1 with 0.90, expert 0 with 0.20, dropped by expert 2, which was full.",
        "dropped by expert 1, which was full.",
        "no expert took it.",
        "expert 0 with 0.40.",
    ]
    classes = page.locator(".tok").evaluate_all(
        "toks => toks.map(t => t.querySelector('b').className.split(' '))"
    )
    assert ["lost" in c for c in classes] == [True, True, False, False]
    assert ["none" in c for c in classes] == [False, True, True, False]
    page.locator(".tok").first.click()
    assert [weight for *_, weight in bars(page)] == ["× 0.200", "× 0.900", "dropped"]
    assert "2 pairs were dropped" in page.locator(".load .quiet").inner_text()
    page.keyboard.press("Shift+ArrowDown")  # a layer with one expert
    assert bars(page) == [("expert 0", "1.000", "× 1.000")] or len(bars(page)) == 1
    shares = page.locator(".load .value:visible").all_inner_texts()
    assert [share for share in shares if "%" in share] == ["100.0%"]  # and what the guess shows


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("E", "K"), [(8, 2), (64, 8)])
def test_axe_finds_nothing(open_page, make_trace, theme, E, K):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(RoutingExplorer(make_trace(TOKENS * 3, E=E, K=K), selected=5), theme=theme)
    ground = page.locator(".moe").evaluate("e => getComputedStyle(e).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == (theme == "dark")

    def check(state, **options):
        found = axe.run(page, **options).response
        assert [(v["id"], v["nodes"][0]["html"]) for v in found["violations"]] == [], state
        return [
            node["html"]
            for verdict in found["passes"]
            if verdict["id"] == "color-contrast"
            for node in verdict["nodes"]
        ]

    check("selected")
    if E == 64:
        return
    page.locator(".load .bar").nth(1).click()
    check("filtered")
    page.get_by_role("button", name="Show all").click()
    page.get_by_label("expert numbers").uncheck()  # axe sees no text through a canvas
    page.locator(".numbers").wait_for(state="hidden")
    read = check("without numbers", options={"runOnly": ["color-contrast"]})
    assert sum(html.startswith("<b") for html in read) > len(TOKENS)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_tint_can_be_read(open_page, make_trace, theme):
    """Contrast of the text on every expert's five tints, computed here."""
    page = open_page(RoutingExplorer(make_trace(TOKENS, E=64, K=8)), theme=theme)
    colors = page.evaluate(
        """() => {
          const tok = document.querySelector(".tok"), out = [];
          const root = getComputedStyle(document.querySelector(".moe"));
          for (let e = 0; e < 64; e++) for (let w = 0; w < 5; w++) {
            const body = tok.querySelector("b"), style = getComputedStyle(body);
            body.className = `t${e} w${w}`;
            out.push([style.color, style.backgroundColor]);
          }
          return { ground: root.backgroundColor, out };
        }"""
    )

    def numbers(color):
        values = [float(v) for v in re.findall(r"[\d.]+", color)]
        return values[:3], values[3] if len(values) > 3 else 1.0

    def luminance(rgb):
        linear = [
            v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
            for v in (c / 255 for c in rgb)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ground, _ = numbers(colors["ground"])
    worst = 21.0
    for ink, tint in colors["out"]:
        rgb, alpha = numbers(tint)
        assert 0 < alpha < 1
        mixed = [alpha * c + (1 - alpha) * g for c, g in zip(rgb, ground, strict=True)]
        low, high = sorted((luminance(mixed), luminance(numbers(ink)[0])))
        worst = min(worst, (high + 0.05) / (low + 0.05))
    print(f"\n{theme}: lowest contrast of text on a tint {worst:.2f}")
    assert worst >= 4.5


def test_the_theme_can_be_turned(open_page, make_trace):
    page = open_page(RoutingExplorer(make_trace(TOKENS)))
    ground = "getComputedStyle(document.querySelector('.moe')).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Dark theme").click()
    page.locator(".moe.dark").wait_for()
    assert page.evaluate(ground) != light
    page.get_by_role("button", name="Light theme").click()
    page.locator(".moe:not(.dark)").wait_for()
    assert page.evaluate(ground) == light


@pytest.mark.parametrize("width", [600, 1400])
def test_nothing_spills_over(open_page, make_trace, width):
    page = open_page(RoutingExplorer(make_trace(TOKENS * 30, E=64, K=8), selected=0), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


MODEL = """
const listeners = {}, saved = [];
const model = {
  get: (k) => state[k],
  set(k, v) { state[k] = v; (listeners["change:" + k] ?? []).slice().forEach((f) => f()); },
  on: (e, f) => (listeners[e] ??= []).push(f),
  off: (e, f) => { listeners[e] = listeners[e].filter((g) => g !== f); },
  save_changes: () => saved.push([state.selected, state.layer, state.expert]),
};
"""


def test_two_views_of_one_model_and_no_trace_left(new_page, make_trace):
    """Views share the state, a new trace redraws both, and render's clean-up leaves nothing."""
    page = new_page()
    page.set_content("<body><div id=a></div><div id=b></div></body>")
    module = base64.b64encode(RoutingExplorer._esm.encode()).decode()
    first, second = RoutingExplorer(make_trace(TOKENS)), RoutingExplorer(make_trace("xyz", L=2))
    states = [
        {
            k: base64.b64encode(v).decode() if isinstance(v, bytes) else v
            for k, v in w.state().items()
        }
        for w in (first, second)
    ]
    seen = page.evaluate(
        """async ([module, states]) => {
          const { render } = (await import("data:text/javascript;base64," + module)).default;
          // data at an odd offset, as it comes out of a message
          const block = (text) => {
            const raw = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
            const room = new Uint8Array(raw.length + 3);
            room.set(raw, 3);
            return new DataView(room.buffer, 3);
          };
          for (const s of states) s.data = block(s.data);
          const state = { ...states[0] };
          """
        + MODEL
        + """
          const views = ["a", "b"].map((id) => document.getElementById(id));
          const undo = views.map((el) => render({ model, el }));
          const marked = () =>
            views.map((el) => el.querySelector("[aria-selected=true]")?.dataset.t);
          const out = {};
          views[0].querySelectorAll(".tok")[4].click();
          out.both = marked();
          out.saved = saved.at(-1);
          Object.assign(state, states[1]);
          model.set("tokens", state.tokens);
          model.set("data", state.data);
          await new Promise((done) => setTimeout(done, 50));
          out.redrawn = views.map((el) => el.querySelectorAll(".tok").length);
          undo.forEach((f) => f());
          out.left = views.map((el) => el.childNodes.length);
          out.listeners = Object.values(listeners).flat().length;
          return out;
        }""",
        [module, states],
    )
    assert seen == {
        "both": ["4", "4"], "saved": [4, 0, -1], "redrawn": [3, 3], "left": [0, 0], "listeners": 0,
    }  # fmt: skip


GESTURES = {
    "switch layer": "(n) => { const s = document.querySelector('input[type=range]');"
    " s.value = n % 16; s.dispatchEvent(new Event('input')); }",
    "select": "(n) => document.querySelectorAll('.tok')[n * 37].click()",
    "filter": "(n) => document.querySelectorAll('.load .bar')[n].click()",
    "hover": "(n) => document.querySelectorAll('.tok')[n * 31]"
    ".dispatchEvent(new MouseEvent('mouseover', { bubbles: true }))",
    "scroll the map": "(n) => { document.querySelector('.frame').scrollLeft = n * 300; }",
}


def test_the_whole_of_a_long_text_is_coloured(open_page, make_trace):
    """Tokens out of view are painted after those in view, but they are painted."""
    trace = make_trace((TOKENS * 79)[:2048], L=3, E=64, K=8)
    page = open_page(RoutingExplorer(trace))
    page.locator(".layer input").fill("2")
    expected = [f"t{e}" for e in viz.first_experts(trace.layers[2])]
    wait_until(
        page,
        """wanted => [...document.querySelectorAll(".tok > b:first-of-type")]
        .every((b, t) => b.classList.contains(wanted[t]))""",
        expected,
    )
    page.locator(".tok").nth(2000).evaluate("t => t.click()")
    box = page.locator(".tokens").bounding_box()
    token = page.locator(".tok").nth(2000).bounding_box()
    assert box["y"] < token["y"] < box["y"] + box["height"], "the choice is brought into view"


def test_two_thousand_tokens_answer(open_page, make_trace, capsys):
    """Print the milliseconds of each gesture: script, style and layout, then up to the painting."""
    trace = make_trace((TOKENS * 79)[:2048], L=16, E=64, K=8)
    page = open_page(RoutingExplorer(trace), width=1400)
    page.locator(".tok").nth(2047).wait_for(state="attached")
    for name, gesture in GESTURES.items():
        times = page.evaluate(
            f"""async () => {{
              const act = {gesture}, root = document.querySelector(".moe"), times = [];
              const frame = () => new Promise((f) => requestAnimationFrame(() => setTimeout(f)));
              for (let n = 1; n <= 9; n++) {{
                await frame(); await frame();
                const begin = performance.now();
                act(n);
                root.getBoundingClientRect();
                const answered = performance.now();
                await frame();
                times.push([answered - begin, performance.now() - begin]);
              }}
              return times;
            }}"""
        )
        work, paint = (statistics.median(column) for column in zip(*times, strict=True))
        with capsys.disabled():
            print(
                f"\n  2048 x 16 x 64, {name}: {work:.1f} ms of script and layout,"
                f" painted after {paint:.1f} ms (median of {len(times)})",
                end="",
            )
    assert layer(page) == 9 and selected(page) == 9 * 37
    assert page.locator("[role=status]").inner_text().startswith("Expert 9 got ")
    assert page.locator(".frame").evaluate("f => f.scrollLeft") == 2700


def test_bytes_stand_as_the_character_that_they_spell(open_page, make_trace):
    """In any script the text can be read: a dot for each further token of a character."""
    tokens = [
        "na",
        "⟨C3⟩",
        "⟨AF⟩",
        "ve",
        " ⟨D0⟩",
        "⟨9F⟩⟨D1⟩",
        "⟨80⟩!",
        "⟨F0 9F⟩",
        "⟨98 80⟩",
        "⟨C3⟩",
        "x",
    ]
    page = open_page(RoutingExplorer(make_trace(tokens)))
    toks = page.locator(".tok")
    assert toks.all_text_contents() == [
        "na", "ï", "·", "ve", " Пр", "·", "·!", "😀", "·", "⟨C3⟩", "x"
    ]  # fmt: skip
    toks.nth(2).click()
    assert page.locator(".one h2").inner_text().startswith("Token “⟨AF⟩”, 2nd of 2 for “ï”, layer")
    assert toks.nth(2).get_attribute("aria-label") == "⟨AF⟩, 2nd of 2 for “ï”"
    toks.nth(9).click()  # of no character: it stays what it is
    assert page.locator(".one h2").inner_text().startswith("Token “⟨C3⟩”, layer")


@pytest.mark.parametrize(("E", "K"), [(8, 2), (64, 6)])
def test_what_is_pressed_is_large_enough(open_page, make_trace, E, K):
    """24 px each way (WCAG 2.5.8); a token is a word in a text: as high, and as wide as it is."""
    page = open_page(RoutingExplorer(make_trace(TOKENS, E=E, K=K), selected=3))
    small = page.evaluate("""() => [...document.querySelectorAll(
        "button, select, summary, input[type=range], label:has(input), .tok > b")]
      .filter((e) => e.checkVisibility()).map((e) => [e, e.getBoundingClientRect()])
      .filter(([e, box]) => box.height < 24 || (box.width < 24 && !e.matches("b")))
      .map(([e, box]) => [e.outerHTML.slice(0, 80), box.width, box.height])""")
    assert small == []


def test_it_prints_the_whole_text_with_its_numbers_and_nothing_to_press(open_page, make_trace):
    trace = make_trace(TOKENS * 40)
    page = open_page(RoutingExplorer(trace, selected=3), theme="dark", width=760)
    clipped = """() => { const text = document.querySelector(".tokens");
      return text.scrollHeight > text.clientHeight + 4; }"""
    assert page.evaluate(clipped)
    page.emulate_media(media="print")
    page.settle()
    assert not page.evaluate(clipped)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for part in ("header button", ".help", "canvas.numbers"):
        assert page.locator(part).is_hidden()
    said = page.locator(".tok > b:first-of-type").evaluate_all(
        "all => all.map((b) => getComputedStyle(b, '::after').content)"
    )
    first = viz.first_experts(trace.layers[0])
    assert said == [f'"{e}"' for e in first]
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(255, 255, 255)", "a dark page is printed in light"
