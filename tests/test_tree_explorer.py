"""The tree explorer without a browser: what it sends is the tree's, what it refuses it says."""

import numpy as np
import pytest
import torch
from traitlets import TraitError

from moe_lite.course.hierarchy import affine, em_step, random_tree
from moe_lite.course.widgets import TreeExplorer


def history(depth=2, steps=3, T=30):
    rng = torch.Generator().manual_seed(0)
    x_T1 = torch.randn(T, 1, generator=rng).double()  # not in order
    y_T1 = x_T1.abs() + 0.1 * torch.randn(T, 1, generator=rng).double()
    trees = [random_tree(depth, 2, 1, seeds=[4, 9])]
    for _ in range(steps):
        trees.append(em_step(trees[-1], affine(x_T1), y_T1))
    return trees, x_T1, y_T1


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_is_sent_is_the_first_tree(depth):
    trees, x_T1, y_T1 = history(depth)
    widget = TreeExplorer(trees, x_T1, y_T1, step=1)
    order = x_T1[:, 0].argsort()
    assert widget.x == x_T1[order, 0].tolist() and widget.y == y_T1[order, 0].tolist()
    E, N = 2**depth, 2 ** (depth + 1) - 1
    x_TD = affine(x_T1[order])
    for step, tree in enumerate(trees):
        sent = {
            name: np.frombuffer(getattr(widget, name), "u1").reshape(4, 30, N)[step] / 255
            for name in ("prior", "posterior")
        }
        prior, posterior = tree.log_prior(x_TD).exp()[0], tree.posterior(x_TD, y_T1[order])[0]
        assert np.abs(sent["prior"] - prior.numpy()).max() <= 0.5 / 255 + 1e-9
        assert np.abs(sent["posterior"] - posterior.numpy()).max() <= 0.5 / 255 + 1e-9
        lines = np.frombuffer(widget.lines, "<f4").reshape(4, E, 2)[step]
        np.testing.assert_allclose(lines, tree.expert_QEDO[0, :, :, 0].numpy(), rtol=1e-6)
        level = tree.log_likelihood(x_TD, y_T1[order])[0].item()
        assert widget.likelihood[step] == pytest.approx(level)


def test_its_three_faces(tmp_path):
    widget = TreeExplorer(*history(), step=2, node=1)
    assert widget.title == "A tree of 4 experts learns by EM: 30 points, 3 steps"
    assert widget.png().startswith(b"\x89PNG")
    texts = [text.get_text() for axes in widget.figure().axes for text in axes.texts]
    assert "gate 0\n100%" in texts and sum("%" in text for text in texts) == 7
    page = widget.to_html(tmp_path / "tree.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page and widget.title in page


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(step=4), "step must be from 0 to 3, not 4"),
        (dict(node=7), "node must be from 0 to 6, not 7"),
        (dict(token=-2), "token must be from -1 to 29, not -2"),
    ],
)
def test_what_does_not_exist_is_refused(change, said):
    with pytest.raises(TraitError, match=said):
        TreeExplorer(*history(), **change)


def test_what_cannot_be_drawn_is_refused():
    trees, x_T1, y_T1 = history()
    with pytest.raises(ValueError, match="holds no tree"):
        TreeExplorer([], x_T1, y_T1)
    with pytest.raises(ValueError, match="y must be"):
        TreeExplorer(trees, x_T1, y_T1[:3])
    with pytest.raises(ValueError, match="x must be"):
        TreeExplorer(trees, x_T1[:, 0], y_T1)
    with pytest.raises(ValueError, match=r"depths \[1, 2\]"):
        TreeExplorer([trees[0], random_tree(1, 2, 1, seeds=[0])], x_T1, y_T1)
    with pytest.raises(ValueError, match="one input"):
        TreeExplorer([random_tree(2, 3, 1, seeds=[0])], x_T1, y_T1)
