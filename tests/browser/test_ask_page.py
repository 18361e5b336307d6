"""The explorer that can be asked, as a learner meets it: answers, a film, two side by side."""

import re
import statistics
from dataclasses import replace

import pytest
import torch

from moe_lite.capacity import queue_rank
from moe_lite.config import MixtralConfig
from moe_lite.course.causal import ablate, top_k
from moe_lite.course.data import load_tokenizer, pieces
from moe_lite.course.effects import effect
from moe_lite.course.film import Film
from moe_lite.course.widgets import RoutingExplorer
from moe_lite.model import Mixtral
from moe_lite.routers import GShardRouter, NoisyTopKRouter, SigmoidBiasRouter, TopKRouter
from moe_lite.routing import Routing
from moe_lite.trace import RoutingTrace

TOKENS = ["HAM", "LET", ".", " To", " be", ",", " or", " not", " to", " be", "\n", "def", " f",
          "(", "x", "):", "\n\n", "    ", "return", " x", "はじめ", "😀", " שלום", " ",
          "e"]  # fmt: skip
TEXT = "To be, or not <b>to</b> be:\nthat is 3 + 4."


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=4096, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=4,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    return Mixtral(MixtralConfig(**sizes))


def selected(page):
    marked = page.locator('[role=option][aria-selected="true"]')
    return int(marked.get_attribute("data-t")) if marked.count() else -1


def sentence(trace, n, t):
    """Say what the page should say of a token's experts, from the trace alone."""
    r = trace.layers[n]
    pairs = (r.token_N == t).nonzero()[:, 0]
    return ", ".join(f"expert {r.expert_N[i]} with {r.gate_N[i]:.2f}" for i in pairs)


def close(said, share):
    return abs(float(said.rstrip("%")) - 100 * float(share)) < 0.051


def next_rows(page):
    """Read the next tokens as printed: (token, before) or (token, before, after)."""
    return [
        (row.locator("b").inner_text(), *row.locator("span").last.inner_text().split(" → "))
        for row in page.locator(".next li").all()
    ]


def signed(text):
    return float(text.replace("−", "-"))


@pytest.mark.parametrize("made", [ablate(1, 2), top_k(1)])
def test_an_answer_that_came_along(open_page, model, made):
    widget = RoutingExplorer(TEXT, model=model, layer=1)
    tokenizer = load_tokenizer()
    found = effect(model, torch.tensor([tokenizer.encode(TEXT).ids]), made)
    base_TV, now_TV = (run.log_probs_BSV[0].exp() for run in (found.base, found.changed))
    page = open_page(widget)
    page.locator(".tok").nth(3).click()
    plain = next_rows(page)
    value, ids = base_TV[3].topk(5)
    assert all(close(said, p) for (_, said), p in zip(plain, value, strict=True))
    words = [pieces(tokenizer, [i])[0].replace(" ", "␣").replace("\n", "↵") for i in ids.tolist()]
    assert [word for word, _ in plain] == words

    page.locator(".ask select").select_option(label=str(made))
    rows = next_rows(page)
    for (_, before, after), i in zip(rows, ids, strict=False):
        assert close(before, base_TV[3, i]) and close(after, now_TV[3, i])
    likeliest = pieces(tokenizer, [int(now_TV[3].argmax())])[0]
    assert likeliest.replace(" ", "␣").replace("\n", "↵") in [word for word, *_ in rows]
    assert rows != plain
    rise = found.rise_T[4:].mean()
    said = page.locator(".answers p", has_text="Mean ").inner_text()
    mean, new, by = re.search(r"Mean ([\d.]+) → ([\d.]+) nats \((.[\d.]+)\)", said).groups()
    assert float(mean) == pytest.approx(float(found.base.loss_T[4:].mean()), abs=0.002)
    assert float(new) == pytest.approx(float(found.changed.loss_T[4:].mean()), abs=0.002)
    assert signed(by) == pytest.approx(float(rise), abs=0.002)
    worst = float(found.rise_T[4:][found.rise_T[4:].abs().argmax()])
    assert signed(re.search(r"Most: .*?” (.[\d.]+)", said)[1]) == pytest.approx(worst, abs=0.0021)
    drawn = page.locator(".ask canvas").evaluate(
        "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v)"
    )
    assert drawn

    answers = {key: a for key, a in widget.answers.items() if made.kind in key and "null]]" in key}
    (answer,) = [a for key, a in answers.items() if made.kind == "top_k" or ",1,2," in key]
    old, new = page.locator(".made").all_inner_texts()[0], page.locator(".made").last.inner_text()
    assert [old, new] == [text.replace("\n", "↵") for text in answer["next"][1:]]
    status = page.locator(".asked").inner_text()
    cells = 2 * len(widget.tokens)
    assert status == f"{str(made).capitalize()}. {answer['moved']} of {cells} first choices change."
    page.get_by_role("button", name="Leave it untouched").click()
    assert next_rows(page) == plain and page.locator(".made").count() == 0
    assert page.locator(".ask b b").count() == 0  # the text's <b> is text


def test_by_keyboard_alone(open_page, model):
    page = open_page(RoutingExplorer(TEXT, model=model, selected=2))
    page.locator(".ask select").focus()
    page.keyboard.press("ArrowDown")
    assert "Ablate expert" in page.locator(".asked").inner_text()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator(".asked").inner_text() == ""
    assert selected(page) == 2


def choice(page, label):
    """Find a choice of the form by the words before it."""
    return page.locator(".ask label", has_text=re.compile(f"^{label} ")).locator("select")


class Asked(RoutingExplorer):
    """A page that believes it has a kernel, to see the form and what it would send."""

    def state(self):
        return {**super().state(), "live": True}


def test_the_form_spells_a_question(open_page, model):
    widget = Asked(TEXT, model=model, layer=1)
    routing = widget.trace.layers[1]
    page = open_page(widget, script="window.seen = [];")
    page.locator(".tok").nth(5).click()
    first, second = routing.expert_N[routing.token_N == 5].tolist()
    ask = page.get_by_role("button", name="Ask")
    status = page.locator(".asked")
    ask.click()
    token = f"token 5 “{widget.tokens[5]}”".replace(" ", "␣").replace("token␣5␣", "token 5 ")
    assert status.inner_text() == (
        f"Ablate expert {first} in layer 1, for {token}. The model is being asked …"
    )
    assert page.locator(".ask").get_attribute("aria-busy") == "true"
    choice(page, "… you").select_option("swap")
    choice(page, "for").select_option("all")
    page.get_by_role("button", name="And also").click()
    assert (
        f"and swap experts {first} and {second} in layer 1, for all tokens" in status.inner_text()
    )
    choice(page, "… you").select_option("top_k")
    choice(page, "in").select_option("all")
    choice(page, "k").select_option("3")
    ask.click()
    assert status.inner_text().startswith("3 experts per token in every layer, for all tokens.")
    page.locator(".own summary").click()
    area = page.get_by_label("Your own text")
    assert area.input_value() == TEXT
    area.press("Escape")  # typing is typing: it neither clears the choice nor filters
    area.type("5")
    assert selected(page) == 5 and page.locator("[aria-pressed=true]").count() == 0


def ranked(trace, n, t, priority):
    """Say from the library's queue_rank what the page should say of a token's places."""
    routing = trace.layers[n]
    asked = Routing(**{**vars(routing), "keep_N": None})
    rank_N, said = queue_rank(asked, priority), []
    for i in (routing.token_N == t).nonzero()[:, 0].tolist():
        e, place = int(routing.expert_N[i]), int(rank_N[i]) + 1
        end = (
            "th"
            if place % 100 in (11, 12, 13)
            else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
        )
        lost = "" if routing.keep_N is None or routing.keep_N[i] else ", dropped"
        length = int((routing.expert_N == e).sum())
        said.append(f"{place}{end} of {length}{lost} at expert {e}")
    return f"In the queues: {'; '.join(said)}."


GATES = {
    "position": lambda: TopKRouter(16, 4, 2, capacity_factor=0.6),
    "gate": lambda: TopKRouter(16, 4, 2, capacity_factor=0.6, priority="gate"),
    "choice": lambda: GShardRouter(16, 4, capacity_factor=1.2),
}


@pytest.mark.parametrize("priority", GATES)
def test_its_place_in_the_queue(open_page, model, priority):
    old = [layer.gate for layer in model.moe_layers]
    for each in model.moe_layers:
        each.gate = GATES[priority]()
    try:
        widget = RoutingExplorer(TEXT, model=model)
        widget.precompute(1)
    finally:
        for each, gate in zip(model.moe_layers, old, strict=True):
            each.gate = gate
    page = open_page(widget)
    assert (~widget.trace.layers[0].keep_N).any()
    for t in range(0, len(widget.tokens), 3):
        page.locator(".tok").nth(t).click()
        page.get_by_text(ranked(widget.trace, 0, t, priority), exact=True).wait_for()
    page.locator(".one summary").click()
    page.locator(".one tbody tr").nth(3).wait_for()
    table = page.locator(".one tbody tr").all_inner_texts()
    pairs = [
        (n, i) for n, r in enumerate(widget.trace.layers) for i in range(len(r.token_N))
        if r.token_N[i] == t
    ]  # fmt: skip
    assert len(table) == len(pairs) == 4
    for row, (n, i) in zip(table, pairs, strict=True):
        routing, (_, e, gate, logit, place) = widget.trace.layers[n], row.split("\t")
        assert int(e) == routing.expert_N[i]
        assert gate == (f"{routing.gate_N[i]:.3f}" if routing.keep_N[i] else "dropped")
        assert signed(logit) == pytest.approx(float(routing.logits_TE[t, int(e)]), abs=0.0051)
        assert place.endswith("dropped") != bool(routing.keep_N[i])


def test_scores_noise_and_bias_are_said(open_page):
    torch.manual_seed(2)
    noisy, steady = NoisyTopKRouter(4, 3, 1), SigmoidBiasRouter(4, 3)
    steady.bias_E.copy_(torch.tensor([0.25, 0.0, -0.5]))
    with torch.no_grad():
        layers = tuple(router(torch.randn(4, 4)).detach() for router in (noisy, steady))
    page = open_page(RoutingExplorer(RoutingTrace([*"abcd"], layers, ("0", "1"), "a test")))
    page.locator(".tok").nth(1).click()
    said = page.locator(".logit:visible").all_inner_texts()
    for text, logit in zip(said, layers[0].logits_TE[1].tolist(), strict=True):
        assert signed(text) == pytest.approx(logit, abs=0.0051)
    words = page.get_by_text("In the choice: ").inner_text()
    for e, noise in enumerate(layers[0].noise_TE[1].tolist()):
        (found,) = re.findall(rf"expert {e} noise (.\d+\.\d+)", words)
        assert signed(found) == pytest.approx(noise, abs=0.0051)
    page.keyboard.press("Shift+ArrowDown")
    words = "In the choice: expert 0 bias +0.250; expert 2 bias −0.500."
    page.get_by_text(words, exact=True).wait_for()


def test_unknown_scores_are_said_to_be_unknown(open_page, make_trace):
    trace = make_trace("abcd", L=2, E=3)
    known, other = trace.layers
    nan_TE = torch.full_like(known.logits_TE, torch.nan)
    hidden = replace(other, logits_TE=nan_TE, probs_TE=nan_TE)
    rules = ("softmax", "scores unknown: no gate says them")
    page = open_page(RoutingExplorer(replace(trace, layers=(known, hidden), rules=rules)))
    page.locator(".tok").nth(2).click()
    page.get_by_text("those chosen. The choice: softmax.").wait_for()
    shares = page.locator(".one .value:visible").all_inner_texts()
    assert sum(map(float, shares)) == pytest.approx(1, abs=0.002)
    page.keyboard.press("Shift+ArrowDown")
    page.get_by_text("are unknown (scores unknown: no gate says them).").wait_for()
    for column in (".value", ".logit"):
        assert page.locator(f".one {column}:visible").all_inner_texts() == ["?"] * 3
    weights = page.locator(".one .weight:visible").all_inner_texts()
    assert sorted(filter(None, weights), reverse=True) == [
        f"× {gate:.3f}" for gate in sorted(other.gate_N[4:6].tolist(), reverse=True)
    ]


def make_film(T, L, E, steps):
    ids_BS = torch.arange(T).view(2, -1)
    film = Film(
        ids_BS,
        torch.arange(2)[:, None].expand_as(ids_BS),
        ("drama", "code"),
        (TOKENS * T)[:T],
        list(steps),
    )
    for step in steps:
        film.logits[step] = (2 * torch.randn(L, T, E)).half()
    return film


def make_whole_film(T, L, E, steps):
    """Film a router whose choice does not follow from its logits."""
    film, router = make_film(T, L, E, steps), SigmoidBiasRouter(E, E, gate_scale=2.5)
    router.bias_E.normal_()
    for step in steps:
        logits_LTE = film.logits.pop(step).float()
        film.routings[step] = tuple(router(logits_TE).detach() for logits_TE in logits_LTE)
    return film


@pytest.mark.parametrize("make_film", [make_film, make_whole_film])
def test_a_film_is_watched_with_a_slider(open_page, make_film):
    film = make_film(60, 3, 8, (0, 1, 10, 1000))
    page = open_page(RoutingExplorer(film=film, layer=1))
    slider = page.get_by_label("Training step")
    assert page.get_by_label("Training step").locator("xpath=../output").inner_text() == "1,000"
    page.get_by_text("The text: drama 0–29, code 30–59.").wait_for()
    page.locator(".tok").nth(7).click()
    for frame, step in reversed([*enumerate(film.steps)]):
        slider.fill(str(frame))
        trace = film.trace(step)
        assert slider.get_attribute("aria-valuetext") == f"step {step}"
        said = page.locator(".one h2").inner_text()
        assert said == f"Token “␣not”, layer 1: {sentence(trace, 1, 7)}."
        probs = page.locator(".one .value:visible").all_inner_texts()
        for text, p in zip(probs, trace.layers[1].probs_TE[7], strict=True):
            assert float(text) == pytest.approx(float(p), abs=0.00051)
        expected = [f"t{e}" for e in trace.layers[1].expert_N.view(-1, 2)[:, 0].tolist()]
        page.settle()
        shown = page.locator(".tok > b:first-of-type").evaluate_all(
            "all => all.map(b => b.className)"
        )
        assert all(e in each.split() for e, each in zip(expected, shown, strict=True))
        loads = page.locator(".load .count").all_inner_texts()
        assert loads == [f"{n:.0f}" for n in trace.layers[1].load_E()]
    assert selected(page) == 7


def test_a_film_plays(open_page):
    film = make_film(12, 3, 8, (0, 1, 10, 1000))
    page = open_page(RoutingExplorer(film=film))
    page.evaluate("""() => { window.seen = [];
      const slider = document.querySelector("[aria-label='Training step']");
      new MutationObserver(() => seen.push(slider.value))
        .observe(slider.parentNode.querySelector("output"), { childList: true });
      const play = [...document.querySelectorAll("button")].find((b) => b.textContent === "Play");
      window.named = [];
      new MutationObserver(() => named.push(play.textContent)).observe(play, { childList: true });
    }""")
    page.get_by_role("button", name="Step").click()  # it stands at its end, and stays there
    slider = page.get_by_label("Training step")
    assert slider.input_value() == "3"
    page.evaluate("window.named = []")
    page.get_by_role("button", name="Play").press("Enter")
    page.wait_for_function("() => window.named.includes('Play')")  # from its beginning to its end
    assert page.evaluate("window.named")[0] == "Pause"
    assert slider.get_attribute("aria-valuetext") == "step 1000"
    assert page.evaluate("window.seen") == ["0", "1", "2", "3"]


def test_two_side_by_side(open_page, make_trace):
    one, two, other = make_trace(TOKENS), make_trace(TOKENS, L=3), make_trace("xyz", E=4)
    page = open_page(RoutingExplorer(one, beside=two))
    sides = page.locator(".moe-pair > [role=region]")
    sides.nth(1).locator(".tok").nth(4).click()  # one text: one choice
    for n, trace in enumerate((one, two)):
        said = sides.nth(n).locator(".one h2").inner_text()
        assert said == f"Token “␣be”, layer 0: {sentence(trace, 0, 4)}."
    sides.nth(0).locator(".layer input").fill("3")  # which the second does not have
    assert [s.locator(".controls output").inner_text() for s in sides.all()] == ["3", "2"]
    page = open_page(RoutingExplorer(one, beside=other))
    sides = page.locator(".moe-pair > [role=region]")
    sides.nth(0).locator(".tok").nth(20).click()
    sides.nth(1).locator(".tok").nth(1).click()  # two texts: a choice in each
    assert f"“{TOKENS[20]}”".strip() in sides.nth(0).locator(".one h2").inner_text().replace(
        "␣", " "
    )
    assert "“y”" in sides.nth(1).locator(".one h2").inner_text()
    sides.nth(0).locator(".load .bar").nth(6).click()  # there are but four experts beside it
    assert sides.nth(0).locator("[role=status]").inner_text().startswith("Expert 6 got")
    assert sides.nth(1).locator("[role=status]").inner_text() == ""


@pytest.mark.parametrize("width", [1200, 1700])
def test_no_text_moves_under_the_pointer(open_page, make_trace, width):
    long, short = make_trace(TOKENS), make_trace("xyz", E=4)
    for first, second in ((long, short), (short, long)):
        page = open_page(RoutingExplorer(first, beside=second), width=width)
        for side in page.locator(".moe-pair > [role=region]").all():
            token, seen = side.locator(".tok").nth(1), side.locator(".one > :visible")
            invitation, before = seen.all_inner_texts(), token.bounding_box()
            page.mouse.move(before["x"] + 3, before["y"] + 3)
            page.settle()
            assert side.locator(".one h2").inner_text().startswith("Token")
            assert token.bounding_box() == before
            page.mouse.move(0, 0)
            page.settle()
            assert seen.all_inner_texts() == invitation
            assert token.bounding_box() == before


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("width", [360, 420, 620, 860, 1100, 1700])
def test_no_bar_moves_under_the_pointer(open_page, make_trace, width, beside):
    other = {"beside": make_trace(TOKENS * 4)} if beside else {}
    page = open_page(RoutingExplorer(make_trace(TOKENS * 4), **other), width=width)
    page = page.locator(".routing-explorer").last
    bar, clear = page.locator(".load .bar").nth(3), page.get_by_role("button", name="Show all")
    for press, narrowed in ((bar.click, True), (bar.click, False)):
        bar.scroll_into_view_if_needed()
        before = bar.bounding_box()
        press()
        assert bar.bounding_box() == before and clear.is_visible() == narrowed
    bar.click()
    controls, button = page.locator(".controls").first.bounding_box(), clear.bounding_box()
    assert button["x"] + button["width"] <= controls["x"] + controls["width"]
    status = page.locator("[role=status]").first
    assert "got" in status.inner_text()
    assert status.evaluate("e => e.scrollWidth <= e.clientWidth"), "all of it can be read"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(open_page, make_trace, model, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def check(page, state):
        found = axe.run(page).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in found] == [], state

    page = open_page(RoutingExplorer(TEXT, model=model, selected=3), theme=theme)
    page.locator(".ask select").select_option(index=1)
    page.locator(".one summary").click()
    check(page, "answered")
    asked = Asked(TEXT, model=model, selected=3)
    asked.precompute(1).problem = "no"
    page = open_page(asked, theme=theme)
    check(page, "a form")
    choice(page, "… you").select_option("swap")
    page.get_by_role("button", name="Ask").click()
    check(page, "asked")
    check(open_page(RoutingExplorer(film=make_film(30, 2, 4, (0, 9))), theme=theme), "film")
    beside = RoutingExplorer(make_trace(TOKENS), beside=make_trace("xyz"), selected=1)
    check(open_page(beside, theme=theme), "beside")


@pytest.mark.parametrize("width", [380, 1400])
def test_nothing_spills_over(open_page, make_trace, model, width):
    page = open_page(Asked(TEXT, model=model, selected=1), width=width)
    page.locator(".one summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page = open_page(RoutingExplorer(make_trace(TOKENS), beside=make_trace("xyz")), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


GESTURES = {
    "an answer": """(n) => { const s = document.querySelector(".ask select");
      s.selectedIndex = n; s.dispatchEvent(new Event("change")); }""",
    "select, with an answer": "(n) => document.querySelectorAll('.tok')[n * 37].click()",
    "a film's frame": """(n) => { const s = document.querySelector("[aria-label='Training step']");
      s.value = n % 4; s.dispatchEvent(new Event("input")); }""",
}


def test_two_thousand_tokens_answer(open_page, capsys):
    """Print the milliseconds of each gesture, as for the explorer that only looks."""
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=4096, hidden_size=8, intermediate_size=4, num_hidden_layers=16,
        num_attention_heads=1, num_key_value_heads=1, num_local_experts=64, num_experts_per_tok=8,
        max_position_embeddings=2100,
    )  # fmt: skip
    tokenizer = load_tokenizer()
    text = tokenizer.decode((tokenizer.encode(TEXT).ids * 200)[:2048])
    asked = RoutingExplorer(text, model=Mixtral(MixtralConfig(**sizes)))
    for e in range(9):
        asked.ask(ablate(0, e))
        asked.answers = {**asked.answers, asked.answer["key"]: asked.answer}
    film = RoutingExplorer(film=make_film(2048, 16, 64, (0, 1, 10, 100)))
    pages = [open_page(widget, width=1400) for widget in (asked, film)]
    for name, gesture in GESTURES.items():
        page = pages["film" in name]
        times = page.evaluate(
            f"""async () => {{
              const act = {gesture}, root = document.querySelector(".moe"), times = [];
              const frame = () => new Promise((f) => requestAnimationFrame(() => setTimeout(f)));
              for (let n = 1; n <= 9; n++) {{
                await frame(); await frame();
                const begin = performance.now();
                act(n);
                root.getBoundingClientRect();
                times.push(performance.now() - begin);
              }}
              return times;
            }}"""
        )
        with capsys.disabled():
            print(
                f"\n  2048 x 16 x 64, {name}: {statistics.median(times):.1f} ms of script and "
                f"layout (median of {len(times)})",
                end="",
            )
    assert selected(pages[0]) == 9 * 37
    assert "Ablate expert 8 in layer 0" in pages[0].locator(".asked").inner_text()
    assert pages[1].get_by_label("Training step").input_value() == "1"
