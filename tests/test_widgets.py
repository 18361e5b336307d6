"""The explorer without a browser: what it sends, what it writes, what it refuses."""

import base64
import errno
import hashlib
import json
import os
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from traitlets import TraitError

import moe_lite.course.widgets
from moe_lite.course.widgets import RoutingExplorer
from moe_lite.course.widgets.routing_explorer import pack
from moe_lite.routers import TopKRouter
from moe_lite.routing import Routing
from moe_lite.trace import RoutingTrace

FILES = sorted(Path(moe_lite.course.widgets.__file__).parent.glob("*.*s*"))  # .js and .css
NASTY = ["<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "<!--", "\u2028",
         "'\"&", "\ud800", "\x00", "はじめ", "😀", "e\u0301", "שלום", "", " ", "\n"]  # fmt: skip


def make_trace(tokens, L=3, E=8, K=2):
    layers = tuple(TopKRouter(4, E, K)(torch.randn(len(tokens), 4)).detach() for _ in range(L))
    return RoutingTrace(list(tokens), layers, tuple(f"layers.{n}" for n in range(L)), "a test")


@st.composite
def traces(draw):
    """Any routing: chosen by tokens or by experts, dropped or not, softmax or not, E uneven."""
    T = draw(st.integers(1, 5))
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        E = draw(st.integers(1, 9))
        seed = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        logits_TE = torch.randn(T, E, generator=seed)
        probs_TE = logits_TE.sigmoid() if draw(st.booleans()) else logits_TE.softmax(-1)
        pick_TE = torch.rand(T, E, generator=seed) < draw(st.sampled_from([0.0, 0.3, 1.0]))
        expert_N, token_N = pick_TE.T.nonzero().unbind(1)  # in the experts' order
        gate_N = torch.rand(len(token_N), generator=seed)
        keep_N = torch.rand(len(token_N), generator=seed) < 0.7 if draw(st.booleans()) else None
        layers.append(Routing(logits_TE, probs_TE, token_N, expert_N, gate_N, keep_N))
    names = tuple(str(n) for n in range(len(layers)))
    return RoutingTrace([f"t{t}" for t in range(T)], tuple(layers), names, "a test")


def unpack(state):
    arrays = {}
    for name, (kind, offset, length) in state["arrays"].items():
        dtype = np.dtype("<" + kind)
        assert offset % dtype.itemsize == 0, f"{name} is not aligned: no typed array can view it"
        arrays[name] = np.frombuffer(state["data"], dtype, length, offset)
    return arrays


@given(traces())
def test_packed_data_is_the_trace(trace):
    state = pack(trace)
    a = unpack(state)
    assert state["num_experts"] == [r.num_experts for r in trace.layers]
    at, T = 0, len(trace.tokens)
    for n, r in enumerate(trace.layers):
        probs = a["probs"][at : at + r.probs_TE.numel()].reshape(r.probs_TE.shape)
        at += probs.size
        assert np.abs(probs / 1000 - r.probs_TE.numpy()).max() <= 0.0005 + 1e-9
        keep_N = torch.ones_like(r.token_N) if r.keep_N is None else r.keep_N
        for t in range(T):
            own = slice(a["start"][n * T + t], a["start"][n * T + t + 1])
            sent = zip(a["expert"][own], a["gate"][own], a["keep"][own], strict=True)
            pairs = zip(r.token_N, r.expert_N, r.gate_N, keep_N, strict=True)
            true = [(e, g, k) for token, e, g, k in pairs if token == t]
            assert sorted((int(e), float(g), bool(k)) for e, g, k in sent) == sorted(
                (int(e), float(g), bool(k)) for e, g, k in true
            )
            assert (np.diff(a["gate"][own]) <= 0).all(), "best first"
    assert at == a["probs"].size and a["start"][-1] == a["expert"].size


def test_thousandths_are_the_nearest():
    """0.0625 has two nearest thousandths; the page shows the upper one, as toFixed would."""
    probs_TE = torch.tensor([[0.0625, 0.1234, 0.1236, 0.6905]])
    routing = Routing.from_choices(
        probs_TE.log(), probs_TE, torch.tensor([[3]]), torch.tensor([[1.0]])
    )
    state = pack(RoutingTrace(["a"], (routing,), ("0",), "a test"))
    assert unpack(state)["probs"].tolist() == [63, 123, 124, 691]


def test_what_is_unknown_is_sent_as_unknown():
    probs_TE = torch.tensor([[0.25, 0.75], [torch.nan, torch.nan]])
    routing = Routing(probs_TE.log(), probs_TE, *(torch.zeros(2, dtype=int) for _ in "NN"),
                      torch.ones(2))  # fmt: skip
    trace = RoutingTrace(["a", "b"], (routing,), ("0",), "a test", ("scores unknown: why",))
    sent = unpack(pack(trace))
    assert sent["probs"].tolist() == [250, 750, 0xFFFF, 0xFFFF]
    assert sent["logit"].tolist() == [-139, -29, -32768, -32768]
    assert pack(trace)["rules"] == ["scores unknown: why"]


def test_selection_layer_and_filter_can_be_set_and_watched():
    widget = RoutingExplorer(make_trace("abcde"), layer=1)
    assert (widget.selected, widget.layer, widget.expert) == (-1, 1, -1)
    heard = []
    widget.observe(lambda change: heard.append((change.name, change.new)), ["selected", "layer"])
    widget.set_state({"selected": 4, "layer": 2})  # what a click in a page sends
    widget.expert = 7
    assert (widget.selected, widget.layer, widget.expert) == (4, 2, 7)
    assert sorted(heard) == [("layer", 2), ("selected", 4)]


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("selected", 5, "selected must be a token from 0 to 4, or -1 for none, not 5"),
        ("selected", -2, "not -2"),
        ("layer", 3, "layer must be a layer from 0 to 2, not 3"),
        ("layer", -1, "layer must be a layer from 0 to 2, not -1"),
        ("expert", 8, "expert must be an expert from 0 to 7, or -1 for none, not 8"),
    ],
)
def test_what_does_not_exist_cannot_be_set(name, value, complaint):
    widget = RoutingExplorer(make_trace("abcde"))
    before = getattr(widget, name)
    with pytest.raises(TraitError, match=complaint):
        setattr(widget, name, value)
    assert getattr(widget, name) == before
    with pytest.raises(TraitError):
        RoutingExplorer(make_trace("abcde"), **{name: value})


def test_another_trace_takes_the_place_of_the_first():
    widget = RoutingExplorer(make_trace("abcde"), selected=4, layer=2, expert=7)
    other = make_trace("xy", L=2, E=4)
    widget.trace = other
    assert widget.trace is other
    assert (widget.selected, widget.layer, widget.expert) == (-1, 1, -1)
    assert widget.tokens == ["x", "y"] and widget.data == pack(other)["data"]
    with pytest.raises(ValueError, match="nothing to explore"):
        widget.trace = make_trace("")
    assert widget.trace is other and widget.tokens == ["x", "y"]


def with_routing(**changes):
    base = dict(
        logits_TE=torch.zeros(2, 3), probs_TE=torch.full((2, 3), 1 / 3),
        token_N=torch.tensor([0, 1]), expert_N=torch.tensor([0, 2]), gate_N=torch.ones(2),
    )  # fmt: skip
    return RoutingTrace(["a", "b"], (Routing(**(base | changes)),), ("mlp",), "a test")


@pytest.mark.parametrize(
    ("trace", "complaint"),
    [
        (lambda: make_trace(""), "nothing to explore: the trace has 0 tokens and 3 layers"),
        (lambda: make_trace("ab", L=0), "2 tokens and 0 layers"),
        (lambda: with_routing(expert_N=torch.tensor([0, 3])), "layer mlp names expert 3, but"),
        (lambda: with_routing(token_N=torch.tensor([0, -1])), "layer mlp names token -1, but"),
        (lambda: with_routing(gate_N=torch.tensor([1, torch.nan])), "mlp has a gate weight that"),
        (lambda: with_routing(probs_TE=torch.tensor([[torch.nan, 0, 1]] * 2)), "mlp has a prob"),
        (lambda: with_routing(probs_TE=torch.full((2, 3), 1.5)), "mlp has a probability outside"),
    ],
)
def test_what_cannot_be_explored_is_said(trace, complaint):
    with pytest.raises(ValueError, match=complaint):
        RoutingExplorer(trace())


class Elements(HTMLParser):
    """Collect start tags, and the text of scripts, as a browser would see them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts = [], {}
        self._script = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._script = dict(attrs).get("type") if tag == "script" else None

    def handle_data(self, data):
        if self._script:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    def handle_endtag(self, tag):
        self._script = None


def test_tokens_stay_text_in_the_page():
    trace = make_trace(NASTY)
    page = RoutingExplorer(trace).html()
    elements = Elements(page)
    assert elements.tags.count("script") == 3 and "img" not in elements.tags
    state = json.loads(elements.scripts["application/json"])
    assert state["tokens"] == [token.replace("\ud800", "?") for token in NASTY]
    assert zlib.decompress(base64.b64decode(state["data"]["deflated"])) == pack(trace)["data"]
    source = RoutingTrace(["a"], make_trace("a").layers, ("0", "1", "2"), "</title><img src=x>")
    assert "img" not in Elements(RoutingExplorer(source).html()).tags


def test_the_page_allows_itself_its_own_script_only():
    page = RoutingExplorer(make_trace("abc")).html()
    assert page.startswith('<!doctype html>\n<html lang="en">')
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    scripts = re.findall(
        r"<script>(.*?)</script>|<script type=\"module\">(.*?)</script>", page, re.S
    )
    digests = [
        base64.b64encode(hashlib.sha256((theme or script).encode()).digest()).decode()
        for theme, script in scripts
    ]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    assert len(digests) == 2
    assert policy == f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'"


FETCHES = (
    r"\w+://|url\(|@import|fetch\(|import\(|importScripts|XMLHttpRequest|WebSocket|EventSource"
    r"|sendBeacon"
)
SVG = '"http://www.w3.org/2000/svg"'  # a name that is never fetched
PICTURE = 'new DOMParser().parseFromString(svg, "image/svg+xml")'  # matplotlib's, all text escaped
MARKUP = (
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|srcdoc|\beval\b|Function\("
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_fetch_nothing_and_make_no_markup_of_text(file):
    text = file.read_text(encoding="utf-8")
    assert re.findall(FETCHES, text.replace(SVG, "")) == []
    assert re.findall(MARKUP, text.replace(PICTURE, "")) == []


@pytest.mark.parametrize("name", moe_lite.course.widgets.__all__)
def test_what_is_common_comes_first_and_keeps_to_its_widget(name):
    """Several widgets share one document: a rule of one must not reach into another."""
    widget = getattr(moe_lite.course.widgets, name)
    file = next(f for f in FILES if widget._css.endswith(f.read_text(encoding="utf-8")))
    root = file.stem.replace("_", "-")
    module = file.with_suffix(".js").read_text(encoding="utf-8")
    assert re.search(rf"h\([\"`]div\.{root}\b", module), "the root's class is the file's name"
    assert widget._esm.startswith("// What the widgets share") and widget._esm.endswith(module)
    common = widget._css.removesuffix(file.read_text(encoding="utf-8"))
    selectors = re.findall(r"[^{}]+(?={)", re.sub(r"/\*.*?\*/", "", common, flags=re.S))
    rules = [s.strip() for s in selectors if not s.strip().startswith("@")]
    assert len(rules) > 30
    assert [s for s in rules if not re.match(rf"\.{root}\b", s)] == []


def test_the_page_holds_no_address():
    assert {"common.js", "common.css", "page.js", "page.css"} < {file.name for file in FILES}
    assert re.findall(FETCHES, RoutingExplorer(make_trace("abc")).html().replace(SVG, "")) == []
    assert re.findall(FETCHES, "@import 'x'; url(y); fetch('https://z')")  # the pattern bites


@pytest.mark.parametrize(
    ("T", "L", "E", "K", "limit"),
    [(40, 4, 8, 2, 200_000), (512, 8, 8, 2, 500_000), (512, 8, 64, 8, 1_500_000)],
)
def test_the_page_is_small(T, L, E, K, limit, tmp_path):
    path = RoutingExplorer(make_trace([" token"] * T, L, E, K)).to_html(tmp_path / "page.html")
    assert path.stat().st_size < limit


def test_writing_replaces_an_older_file(tmp_path):
    widget = RoutingExplorer(make_trace("abc"), selected=2)
    path = tmp_path / "page.html"
    path.write_text("old")
    assert widget.to_html(str(path)) == path
    assert path.read_text(encoding="utf-8") == widget.html()
    assert '"selected": 2' in widget.html()
    assert widget.to_png(tmp_path / "still.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "still.png"]


@pytest.mark.parametrize("face", ["to_html", "to_png"])
@pytest.mark.parametrize("where", ["missing/page", "folder", "full"])
def test_what_cannot_be_written_leaves_nothing(face, where, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "full").write_text("old")
    if where == "full":

        def full(handle):  # the disk fills up half way
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
    write = getattr(RoutingExplorer(make_trace("abc")), face)
    with pytest.raises(OSError, match=f"^cannot write .*{re.escape(Path(where).name)}: ") as caught:
        write(tmp_path / where)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "full"]
    assert (tmp_path / "full").read_text() == "old"


def test_the_bundle_has_a_live_and_a_still_face():
    data, _ = RoutingExplorer(make_trace("abc"), layer=1)._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"] == "Routing of a test: 3 tokens, 3 MoE layers, 8 experts in each"


@settings(deadline=None, max_examples=10)
@given(traces())
def test_any_trace_has_all_its_faces(trace):
    widget = RoutingExplorer(trace, selected=len(trace.tokens) - 1, layer=len(trace.layers) - 1)
    assert widget.png(dpi=20).startswith(b"\x89PNG")
    assert len(Elements(widget.html()).scripts) == 2
