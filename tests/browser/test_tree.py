"""The tree explorer as a learner meets it: steps, nodes, points, by mouse and by keyboard."""

import pytest
import torch

from moe_lite.course.hierarchy import affine, em_step, random_tree
from moe_lite.course.widgets import TreeExplorer

rng = torch.Generator().manual_seed(0)
X_T1 = torch.linspace(-2, 2, 40).double()[:, None]
Y_T1 = X_T1.abs() + 0.1 * torch.randn(40, 1, generator=rng).double()


@pytest.fixture(scope="module")
def history():
    trees = [random_tree(2, 2, 1, seeds=[1], scale=1.0)]
    for _ in range(6):
        trees.append(em_step(trees[-1], affine(X_T1), Y_T1))
    return trees


@pytest.fixture
def open_widget(open_page, history):
    def open_widget(theme="light", width=1200, **state):
        return open_page(TreeExplorer(history, X_T1, Y_T1, **state), theme=theme, width=width)

    return open_widget


def shares(page):
    """Read each node's posterior as printed, root first."""
    printed = page.locator(".nodes button > span:nth-child(2)").all_inner_texts()
    return torch.tensor([float(text.rstrip("%")) for text in printed]) / 100


def test_the_slider_shows_each_steps_shares(open_widget, history):
    page = open_widget()
    slider = page.get_by_label("EM step")
    for step in (0, 4, 6):
        slider.fill(str(step))
        mean_N = history[step].posterior(affine(X_T1), Y_T1)[0].mean(dim=0)
        torch.testing.assert_close(shares(page).double(), mean_N, atol=0.008, rtol=0)
        level = history[step].log_likelihood(affine(X_T1), Y_T1).item()
        assert page.locator(".controls .quiet").inner_text() == f"log-likelihood {level:.1f}"


def test_a_clicked_point_goes_down_the_tree(open_widget, history):
    page = open_widget(step=3)
    circle = page.locator(".plot circle:not(.ring)").nth(11)
    box = circle.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.locator(".controls output").nth(1).inner_text() == "11"
    posterior_N = history[3].posterior(affine(X_T1), Y_T1)[0, 11]
    torch.testing.assert_close(shares(page).double(), posterior_N, atol=0.008, rtol=0)
    assert page.locator(".ring").get_attribute("visibility") == "visible"
    assert f"point 11 (x = {X_T1[11, 0]:.2f}" in page.locator(".said").inner_text()


def test_a_node_dims_the_points_that_did_not_pass_it(open_widget, history):
    page = open_widget(step=5)
    page.locator(".nodes button").nth(2).click()
    posterior_T = history[5].posterior(affine(X_T1), Y_T1)[0, :, 2]
    seen = page.locator(".plot circle:not(.ring)").evaluate_all(
        "dots => dots.map(dot => Number(dot.getAttribute('opacity')))"
    )
    expected = 0.12 + 0.88 * posterior_T
    torch.testing.assert_close(torch.tensor(seen).double(), expected, atol=0.003, rtol=0)
    pressed = page.locator('.nodes [aria-pressed="true"]')
    assert pressed.count() == 1 and pressed.locator("b").inner_text() == "gate 2"


def test_the_tree_stands_above_its_plot_in_the_order_of_its_regions(open_widget, history):
    page = open_widget(step=2)
    tree, plot = (page.locator(part).bounding_box() for part in (".nodes", ".plot svg"))
    assert tree["y"] + tree["height"] <= plot["y"] + 1
    assert tree["width"] == pytest.approx(plot["width"], abs=2)
    prior_TN = history[-1].log_prior(affine(X_T1)).exp()[0]
    region_N = ((prior_TN * X_T1).sum(0) / prior_TN.sum(0)).tolist()
    left_N = [node.bounding_box()["x"] for node in page.locator(".nodes button").all()]
    for n in range(3):
        a, b = 2 * n + 1, 2 * n + 2
        assert (left_N[a] < left_N[b]) == (region_N[a] < region_N[b])
    ways = page.locator(".guide").evaluate_all("g => g.map(p => p.getAttribute('d'))")
    tags = page.locator("svg text[font-weight='700']").all_text_contents()
    assert [bool(way) for way in ways] == [bool(tag) for tag in tags] and any(
        ways
    )  # a line from the box to its region


def test_all_of_it_by_keyboard(open_widget):
    page = open_widget()
    page.get_by_label("EM step").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".controls output").first.inner_text() == "1"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert page.locator(".controls output").nth(1).inner_text() == "0"
    for _ in range(4):  # past the guess: its slider and its button
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator('.nodes [aria-pressed="true"] b').inner_text() == "gate 1"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everyone_can_read_it(open_widget, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_widget(theme=theme, step=3, token=5)
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()


def test_it_fits_a_narrow_column(open_widget):
    page = open_widget(width=420)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 420
