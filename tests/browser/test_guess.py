"""A guess in a page: made before the answer, drawn beside it, remembered by the browser."""

import json

import pytest
import torch

from moe_lite.config import MixtralConfig
from moe_lite.course import widgets
from moe_lite.course.causal import ablate
from moe_lite.course.data import load_tokenizer, pieces
from moe_lite.course.effects import effect
from moe_lite.model import Mixtral
from moe_lite.routers import TopKRouter

SCORES_TE = torch.randn(24, 4, generator=torch.Generator().manual_seed(5))

BOX = "e => [e.getBoundingClientRect().left, e.getBoundingClientRect().width]"


def queues():
    torch.manual_seed(0)
    routing = TopKRouter(4, 4, 2)(3 * torch.randn(24, 4)).detach()
    return widgets.ExpertQueues(routing, ["</p><b>"] * 24, capacity=6)


def alone(widget):
    return int((~widget.routing.keep_N.view(24, 2).any(1)).sum())


MAKE = {
    "queues": (queues, {"priority": "choice"}, alone),
    "rows": (lambda: widgets.RowsOrColumns(SCORES_TE[:10], by="row"), {"by": "column", "seen": 5},
             lambda widget: len(widget.changed)),
    "tiles": (lambda: widgets.ExpertTiles(routing="zipf"), {"routing": "one-hot"},
              lambda widget: round(100 * widget.layout.useful)),
    "noise": (lambda: widgets.NoisyGate(SCORES_TE, noise=0.7), {"noise": 3.0},
              lambda widget: int(widget.routing.load_E().max())),
    "bits": (lambda: widgets.LogitHistogram(SCORES_TE),
             {"shift": 128.0, "precision": "bfloat16"}, lambda widget: len(widget.changed)),
}  # fmt: skip


@pytest.fixture(params=MAKE)
def case(request):
    make, moves, read = MAKE[request.param]
    then = make()
    for name, value in moves.items():
        setattr(then, name, value)
    return make(), read(then)


def open_again(page):
    """Open the page again with what it stored, which a fresh Chromium may lose.

    A bare page that stores one word and is loaded again had lost it in 16 of 850 tries.
    """
    stored = page.evaluate("({...localStorage})")
    page.add_init_script(f"Object.assign(localStorage, {json.dumps(stored)});")
    page.reload()
    page.requests.pop()


def test_it_is_made_by_keyboard_before_the_answer_and_drawn_beside_it(open_page, case):
    widget, answer = case
    page = open_page(widget)
    box = page.get_by_role("group", name="A guess before you look")
    before = page.locator("p.said").inner_text()
    assert f"it is {answer}" not in page.locator("#widget").inner_text()
    box.get_by_role("slider").focus()
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.settle()
    made = f"{widget.guess['least'] + 3}"
    assert box.locator(".guessed").text_content() == f"You guessed {made}; it is {answer}."
    bar, mark, track = (
        box.locator(part).evaluate(BOX) for part in (".track i", ".track u", ".track")
    )
    most = widget.guess["most"]
    assert bar[1] == pytest.approx(track[1] * answer / most, abs=1)
    assert mark[0] - track[0] == pytest.approx(track[1] * int(made) / most, abs=2)
    assert page.evaluate("document.activeElement.textContent") == "Guess again"
    assert page.locator("p.said").inner_text() != before, "the moves that it asks about are made"
    # It is there when the page is opened again; and can be made again.
    open_again(page)
    assert box.locator(".guessed").text_content() == f"You guessed {made}; it is {answer}."
    assert page.locator("p.said").inner_text() == before
    box.get_by_role("button", name="Guess again").press("Enter")
    assert box.get_by_role("slider").evaluate("e => e === document.activeElement")
    assert "it is" not in box.inner_text()


def guessed(page, what):
    """Make a guess by keyboard, in the panel it belongs to; give what is said of it."""
    box = page.get_by_role("group", name="A guess before you look")
    box.get_by_label("Your guess").focus()
    page.keyboard.type(what)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.settle()
    return box.locator(".guessed").text_content()


def test_a_word_is_guessed_before_the_explorer_is_asked(open_page):
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                 num_key_value_heads=1, num_local_experts=4, initializer_range=0.5)  # fmt: skip
    model = Mixtral(MixtralConfig(vocab_size=4096, max_position_embeddings=64, **sizes))
    text = "To be, or not to be: 34"
    widget = widgets.RoutingExplorer(text, model=model, layer=1)
    page = open_page(widget)
    loads = [layer.load_E() for layer in widget.trace.layers]
    n = max((0, 1), key=lambda n: loads[n].max())
    made = ablate(n, int(loads[n].argmax()))
    ids_BS = torch.tensor([load_tokenizer().encode(text).ids])
    best = int(effect(model, ids_BS, made).changed.logits_BSV[0, -1].argmax())
    [word] = pieces(load_tokenizer(), [best])
    assert widget.effect is None and widget.question == [], "nobody has asked yet"
    said = guessed(page, "34 <b>")  # digits are the guess's, not the filter's
    word = word.replace(" ", "␣").replace("\n", "↵")
    assert said == f"You guessed “34 <b>”; it is “{word}”."
    asked = page.locator(".asked").inner_text()
    assert asked.startswith(f"Ablate expert {made.expert} in layer {n}"), "and now it is asked"
    chosen = page.get_by_label("… you").evaluate("s => s.selectedOptions[0].textContent")
    assert chosen.lower() in asked.lower(), "its layer is the one that is shown"
    assert page.locator(".next li b").all_text_contents().count(word) == 1
    open_again(page)
    assert page.locator(".guessed").text_content() == said


def test_of_a_trace_alone_a_load_is_guessed_that_is_not_shown(open_page, make_trace):
    torch.manual_seed(0)
    widget = widgets.RoutingExplorer(make_trace([f"t{n}" for n in range(30)]), layer=1)
    page = open_page(widget)
    most = int(widget.trace.layers[3].load_E().max())
    before = page.locator(".load").inner_text()
    least = -(-int(widget.trace.layers[3].load_E().sum()) // 8)  # the mean: the busiest has that
    assert guessed(page, "") == f"You guessed {(least + 30) // 2}; it is {most}."
    assert page.locator(".controls output").first.inner_text() == "3"
    assert page.locator(".load").inner_text() != before
    assert widget.layer == 1


def test_a_browser_that_keeps_nothing_takes_one_too(open_page):
    deny = """Object.defineProperty(window, "localStorage",
      { get() { throw new Error("denied"); } });"""
    page = open_page(queues(), script=deny)
    page.get_by_role("button", name="Guess").click()
    assert page.locator(".guessed").text_content().startswith("You guessed 12; it is ")


def test_a_stored_value_is_only_ever_text(open_page):
    script = 'Storage.prototype.getItem = () => "<img src=x onerror=alert(1)>";'
    page = open_page(queues(), script=script)
    assert page.locator(".guess img").count() == 0
    assert page.locator(".guessed").is_visible()


@pytest.mark.parametrize(("theme", "width"), [("light", 390), ("dark", 1280)])
def test_axe_finds_nothing(open_page, theme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(queues(), theme=theme, width=width)
    for _ in range(2):  # before it is made, and after
        found = axe.run(page).response["violations"]
        assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found] == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        if page.get_by_role("button", name="Guess", exact=True).is_visible():
            page.get_by_role("button", name="Guess", exact=True).click()
