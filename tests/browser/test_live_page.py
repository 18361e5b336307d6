"""The live page as a reader meets it: from the disk, no request, by mouse and by keyboard."""

import re
import statistics

import pytest
import torch

from moe_lite import hf
from moe_lite.course import asking, cli
from moe_lite.course.causal import ban, intervene
from moe_lite.course.data import load_tokenizer, pieces
from moe_lite.course.film import Film
from moe_lite.course.texts import phone_book
from moe_lite.course.widgets.live import LARGEST, LivePage, openings
from moe_lite.trace import record

TEXT = "HAMLET:\nTo be, or not to be"


@pytest.fixture(scope="module")
def shipped():
    folder = hf.PRETRAINED / "mixtral-mini"
    film, tokenizer = Film.load(folder / "film.safetensors"), load_tokenizer()
    model = hf.load_pretrained()
    return LivePage(model, tokenizer, "", film=film, openings=openings(film, tokenizer),
                    book=asking.book_of(model, tokenizer))  # fmt: skip


@pytest.fixture(scope="module")
def file(shipped, tmp_path_factory):
    return shipped.to_html(tmp_path_factory.mktemp("live") / "live.html")


@pytest.fixture
def live(new_page, file):
    """Open the page; it may make its worker, and nothing else."""
    pages = []

    def live(**kwargs):
        page = new_page(**kwargs)
        page.goto(file.as_uri())
        page.get_by_text("Ready: type").wait_for()
        pages.append(page)
        return page

    yield live
    for page in pages:
        assert [url for url in page.requests if not url.startswith("blob:null/")] == [file.as_uri()]


def typed(page, text):
    page.get_by_label("Type any text").fill(text)
    shown(page, load_tokenizer().encode(text).ids)


def shown(page, ids):
    page.wait_for_function("n => document.querySelectorAll('.tok').length === n", arg=len(ids))


def experts(page, side=0):
    """Read the selected token's experts in every layer, at once: the page may draw itself anew."""
    return page.evaluate("""side => {
      const half = document.querySelectorAll(".moe-pair > div")[side];
      const chips = (step) => [...step.querySelectorAll(".chips > .chip")];
      return [...half.querySelectorAll(".strip button")].map((step) =>
        chips(step).map((chip) => Number(chip.textContent)));
    }""", side)  # fmt: skip


def routed(model, ids, t, *question):
    with torch.no_grad(), intervene(model, *question), record(model) as recorded:
        model(torch.tensor([ids]))
    return [r.expert_N[r.token_N == t].tolist() for r in recorded.trace.layers]


def test_the_page_is_small_and_says_what_rounding_cost(file, shipped, live):
    size = file.stat().st_size
    print(f"\n  {size / 1e6:.1f} MB; {shipped.about}")
    assert size <= LARGEST
    page = live()
    page.get_by_text("What this page is").click()
    assert shipped.about in page.locator("details.live").inner_text()


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_tokens_follow_while_typing(live, shipped, theme, width):
    page, tokenizer = live(theme=theme, width=width), load_tokenizer()
    box = page.get_by_label("Type any text")
    box.fill("")
    box.press_sequentially(TEXT.replace("\n", ""))
    ids = tokenizer.encode(TEXT.replace("\n", "")).ids
    shown(page, ids)
    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
    assert experts(page) == routed(shipped.model, ids, len(ids) - 1)  # the end is selected
    probs = shipped.model(torch.tensor([ids])).logits_BSV[0, -1].softmax(0)
    best = pieces(tokenizer, probs.topk(5).indices.tolist())
    chips = page.evaluate(
        "() => [...document.querySelectorAll('.likely bdi')].map((word) => word.textContent)"
    )
    assert chips == [word.replace(" ", "␣").replace("\n", "↵") for word in best]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    small = page.evaluate("""() =>
      [...document.querySelectorAll("button, select, label:has(input)")]
      .filter((e) => e.checkVisibility()).map((e) => [e.textContent, e.getBoundingClientRect()])
      .filter(([, box]) => box.height < 24 || box.width < 24).map(([text]) => text)""")
    assert small == []


def test_nothing_typed_is_no_text(live):
    page = live()
    page.get_by_label("Type any text").fill("")
    page.get_by_text("there is no text to run").wait_for()
    typed(page, "<img src=x onerror=alert(1)> <!-- </script> &amp; \u202e abc")
    assert page.locator(".problem:not(:empty)").count() == 0


def test_a_question_by_keyboard_has_the_untouched_run_beside_it(live, shipped):
    page = live()
    typed(page, TEXT)
    ids = load_tokenizer().encode(TEXT).ids
    page.locator(".tok").nth(3).focus()
    page.keyboard.press("Enter")
    before = routed(shipped.model, ids, 3)
    page.get_by_label("… you").select_option("ban")
    page.get_by_role("button", name="Ask").focus()
    page.keyboard.press("Enter")
    page.get_by_role("region", name="Second", exact=True).wait_for()
    after = routed(shipped.model, ids, 3, ban(0, before[0][0], tokens=3))
    assert experts(page, 0) == before and experts(page, 1) == after != before
    assert page.evaluate("document.activeElement.textContent") == "Ask"
    page.get_by_text("Going on after token 3").wait_for()
    # It stays while one types on, and goes when it is called off.
    more = TEXT + ": that"
    page.get_by_label("Type any text").fill(more)
    page.wait_for_function(
        "n => document.querySelectorAll('.tok').length === n",
        arg=2 * len(load_tokenizer().encode(more).ids),
    )
    assert experts(page, 1) == after
    page.get_by_role("button", name="Leave it untouched").click()
    page.get_by_role("region", name="Second", exact=True).wait_for(state="detached")


def test_every_kind_of_question_for_one_token_or_all(live):
    page = live()
    typed(page, TEXT)
    page.locator(".tok").nth(3).click()
    whom = page.locator(".form label", has_text=re.compile("^for ")).locator("select")
    for kind in ("force", "ban", "ablate", "swap", "top_k", "scale"):
        for who, said in (("one", "token 3 "), ("all", "all tokens")):
            page.get_by_label("… you").select_option(kind)
            whom.select_option(who)
            page.get_by_role("button", name="Ask").click()
            asked = page.locator(".asked", has_text=re.compile(r"\d+ of \d+ first choices"))
            asked.filter(has_text=f"for {said}").wait_for()
            page.get_by_role("region", name="Second", exact=True).wait_for()
            page.get_by_role("button", name="Leave it untouched").click()
            asked.wait_for(state="hidden")


def test_writing_on(live):
    page = live()
    typed(page, TEXT)
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("button", name="Write on").click()
    page.wait_for_function("text => document.querySelector('textarea').value !== text", arg=TEXT)
    page.get_by_role("button", name="Write on").wait_for()
    said = page.locator(".live [role=status]").inner_text()
    print(f"\n  in Chromium: {said}")
    made = page.get_by_label("Type any text").input_value()
    assert made.startswith(TEXT) and len(made) > len(TEXT)
    # By one token: the likeliest, or the one that is pressed.
    typed(page, TEXT)
    page.locator(".likely button").nth(1).click()
    page.wait_for_function("text => document.querySelector('textarea').value !== text", arg=TEXT)
    tokens = page.locator(".tok").count()
    assert tokens == len(load_tokenizer().encode(TEXT).ids) + 1
    # And it stops when it is told to, or when one types.
    typed(page, TEXT)
    page.get_by_role("button", name="Write on").evaluate(  # at once: it is soon over
        """async (write) => {
          write.click();
          while (write.textContent !== "Stop") await new Promise((done) => setTimeout(done));
          write.click();
        }"""
    )
    page.get_by_role("button", name="Write on").wait_for()
    typed(page, TEXT)


def test_what_it_takes(live):
    """Printed, never asserted: milliseconds for 64 tokens, and how long the page itself is busy."""
    page, tokenizer = live(), load_tokenizer()
    words = tokenizer.decode(tokenizer.encode((TEXT + " ") * 12).ids[:64])
    took, blocked = [], []
    page.evaluate("""() => { window.busy = 0; new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) window.busy = Math.max(window.busy, entry.duration);
    }).observe({ type: "longtask" }); }""")
    for n in range(20):
        text = f"{n}" + words
        page.evaluate("""text => { window.begun = performance.now();
          const box = document.querySelector(".live textarea"); box.value = text;
          box.dispatchEvent(new Event("input")); }""", text)  # fmt: skip
        page.wait_for_function(
            "n => document.querySelector('.tok').textContent === n", arg=str(n)[0]
        )
        said = page.locator(".live [role=status]").inner_text()
        took.append(float(re.search(r"answered in (\d+) ms", said)[1]))
    blocked = page.evaluate("window.busy")
    print(f"\n  64 tokens: {statistics.median(took):.0f} ms in Chromium's worker (median of 20); "
          f"the page itself never busy for more than {blocked:.0f} ms")  # fmt: skip
    assert len(took) == 20


def test_the_film_and_back(live, shipped):
    page = live()
    typed(page, TEXT)
    page.get_by_role("button", name="The film of its training").click()
    step = page.get_by_label("Training step")
    step.wait_for()
    tokens = page.locator(".tok").count()
    assert tokens == len(shipped.state()["reel"]["tokens"])
    step.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.get_by_role("button", name="Back to the text").click()
    shown(page, load_tokenizer().encode(TEXT).ids)
    assert page.get_by_label("Training step").count() == 0


def test_a_beginning_of_each_domain_is_offered(live, shipped):
    page = live()
    menu = page.get_by_label("Begin with")
    offered = menu.locator("option").all_inner_texts()[1:]
    assert offered == [name for name, _ in shipped.state()["openings"]]
    menu.select_option(label=offered[-1])
    page.wait_for_function(
        "() => /answered/.test(document.querySelector('.live [role=status]').textContent)"
    )
    assert page.get_by_label("Type any text").input_value() == shipped.state()["openings"][-1][1]
    asked = dict(shipped.state()["openings"])["phone book"].partition("\n")[2]
    assert asked.removesuffix(": ") in phone_book()
    page.get_by_text("Untouched the model says").wait_for()


def test_accessible(live):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for theme in ("light", "dark"):
        page = live(theme=theme)
        typed(page, TEXT)
        page.get_by_role("button", name="Ask").click()
        page.get_by_role("region", name="Second", exact=True).wait_for()
        found = axe.run(page).response["violations"]
        assert found == [], [(v["id"], v["nodes"][0]["html"]) for v in found]


def test_the_command(tmp_path, capsys):
    assert cli.main(["explore", "--live", "--out", str(tmp_path / "live.html")]) == 0
    assert "MB; open it in any browser" in capsys.readouterr().out


def asked(page, name):
    """Wait until a name is asked for and answered; give what is said."""
    page.wait_for_function(
        "name => document.querySelector('textarea').value.endsWith(`${name}: `)"
        " && !document.querySelector('.recall').hidden", arg=name,
    )  # fmt: skip
    return page.locator(".recall output").inner_text()


def served(model, name):
    """Return each layer's experts of a name's tokens, from its first to the question's last."""
    ids, tokenizer = load_tokenizer().encode(asking.question(name)).ids, load_tokenizer()
    end = next(n for n in range(len(ids)) if f"{name}: " in tokenizer.decode(ids[-n - 1 :]))
    with torch.no_grad(), record(model) as recorded:
        model(torch.tensor([ids]))
    layers = recorded.trace.layers
    return [sorted({*r.expert_N[r.token_N >= len(ids) - end - 1].tolist()}) for r in layers]


def test_a_number_is_asked_for_and_forgotten_without_an_expert(live, shipped):
    """The menu has names that the model knows; any token of the name shows where it went."""
    page, book = live(), phone_book()
    dial, out = page.get_by_label("Ask for the number of"), page.get_by_label("Take out")
    names = dial.locator("option").all_inner_texts()[1:]
    assert len(names) == 12
    for name in names:
        dial.select_option(label=name)
        assert asked(page, name) == f"Untouched the model says {book[name]} ✓ right."
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    want = [
        f"expert {e} of layer {n}" for n, es in enumerate(served(shipped.model, name)) for e in es
    ]
    assert out.locator("option").all_inner_texts() == ["no expert", *want]
    assert out.locator("optgroup").count() == 6
    assert "many, taken out, change nothing" in page.locator(".recall").inner_text()
    out.select_option(label="expert 11 of layer 0")
    page.wait_for_function("() => /✗ wrong/.test(document.querySelector('.recall').textContent)")
    told = page.locator(".recall output").inner_text()
    assert re.fullmatch(rf"Untouched .+ {book[name]} ✓ right. As you changed it: .+ ✗ wrong.", told)
    assert out.input_value() == '[["ablate",0,11,-1,0,null]]'
    ids = load_tokenizer().encode(asking.question(name)).ids
    shown(page, 2 * ids)
    # What else is typed asks for nothing.
    page.get_by_label("Type any text").fill("Once upon a time")
    page.wait_for_function("() => document.querySelector('.recall').hidden")


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_any_name_of_the_book_is_asked_for_after_another_entry(live, theme, width):
    page, names = live(theme=theme, width=width), list(phone_book())
    field = page.get_by_label("or of any other name")
    listed = "field => [...field.list.options].map((option) => option.value)"
    assert field.evaluate(listed) == names
    page.get_by_text("Asked after another entry, as the book was read").wait_for()
    for name in (names[0], names[-1]):
        field.fill("")
        field.press_sequentially(name)
        asked(page, name)
        assert page.get_by_label("Type any text").input_value() == asking.question(name)
        assert page.evaluate("document.activeElement.tagName") == "INPUT"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = field.bounding_box()
    assert box["height"] >= 24 and box["width"] > 100
    field.fill("Nobody <b>Here")
    field.press("Enter")
    page.get_by_text("The phone book has no “Nobody <b>Here”.").wait_for()
    assert page.get_by_label("Type any text").input_value() == asking.question(names[-1])


# Notes what is said of a number, each time with what the control holds then.
NOTES = """([of, mark]) => { window.told = []; new MutationObserver(() => {
  const said = document.querySelector(".recall output").textContent;
  if (said.includes(mark)) told.push([document.querySelector(of).value, said]);
}).observe(document.querySelector(".recall output"), { childList: true }); }"""


def test_an_answer_is_shown_to_its_own_question_only(live, shipped):
    """Whoever goes down the menu in haste is never told of one name what was said of another."""
    page, book = live(), phone_book()
    dial = page.get_by_label("Ask for the number of")
    names = dial.locator("option").all_inner_texts()[1:]
    page.evaluate(NOTES, ["textarea", "Untouched"])
    for delay in (30, 100, 250):
        dial.select_option(label=names[0])
        dial.focus()
        for _ in names[1:]:
            page.wait_for_timeout(delay)
            dial.press("ArrowDown")
        asked(page, names[-1])
    told = {(text.split("\n")[1].removesuffix(": "), said) for text, said in page.evaluate("told")}
    assert (names[-1], f"Untouched the model says {book[names[-1]]} ✓ right.") in told
    assert told <= {(name, f"Untouched the model says {book[name]} ✓ right.") for name in names}


def test_what_is_said_without_an_expert_is_never_shown_beside_another(live):
    page, alone = live(), {}
    dial, out = page.get_by_label("Ask for the number of"), page.get_by_label("Take out")
    name = dial.locator("option").nth(1).inner_text()
    dial.select_option(label=name)
    asked(page, name)
    changed = "() => /As you/.test(document.querySelector('.recall').textContent)"
    options = [each.get_attribute("value") for each in out.locator("option").all()][1:9]
    for value in options:
        out.select_option(value)
        page.wait_for_function(changed)
        alone[value] = page.locator(".recall output").inner_text()
    assert len(set(alone.values())) > 2
    page.evaluate(NOTES, [".recall select", "As you"])
    out.select_option(options[0])
    out.focus()
    for _ in options[1:]:
        page.wait_for_timeout(100)
        out.press("ArrowDown")
    page.wait_for_function(changed)
    told = {tuple(pair) for pair in page.evaluate("told")}
    assert (options[-1], alone[options[-1]]) in told and told <= alone.items()


def test_what_is_typed_while_the_model_writes_stays(live):
    """Tokens that are still on their way belong to the old text, as do the ones it offers."""
    page = live()
    typed(page, TEXT)
    page.evaluate("""() => {
      let seen = 0;
      const watch = new MutationObserver(() => {
        if (++seen < 3) return;
        watch.disconnect();
        const until = performance.now() + 400; // the page is busy: what is written waits
        while (performance.now() < until);
        const box = document.querySelector(".live textarea");
        box.value = "Mine";
        box.dispatchEvent(new Event("input"));
      });
      watch.observe(document.querySelector(".likely"), { childList: true });
    }""")
    page.get_by_role("button", name="Write on").click()
    shown(page, load_tokenizer().encode("Mine").ids)
    page.get_by_role("button", name="Write on").wait_for()
    assert page.get_by_label("Type any text").input_value() == "Mine"
    # A next token that was offered to another text is not put behind this one.
    page.evaluate("""() => {
      const box = document.querySelector(".live textarea");
      box.value = "Another";
      box.dispatchEvent(new Event("input"));
      document.querySelector(".likely button").click();
    }""")
    shown(page, load_tokenizer().encode("Another").ids)
    page.wait_for_timeout(300)
    assert page.get_by_label("Type any text").input_value() == "Another"
    page.get_by_label("Type any text").fill("")
    page.get_by_text("there is no text to run").wait_for()
    assert page.locator(".likely button").count() == 0
