"""The checks are checked: every mutant is told its mistake, every right answer passes.

mutants/check_x.py holds answers to moe_lite.course.checks.check_x. One whose name begins with
"right" must pass; any other must fail, and its docstring is a phrase that the verdict must hold.
variants/check_x.py holds unusual right answers, in other containers and types; they must pass, and
a docstring is a phrase of what is said then. To add one, write a function: nothing else is needed.
harvest_NN.py, in both folders, has answers to a whole chapter that were invented before anybody
looked at its checks: a list for each check of (what was done, a phrase of the verdict, the answer),
without the phrase where it is right. harvest_again, _third, _fourth, _fifth, _sixth and _seventh
are tries made afterwards.
"""

import dataclasses
import functools
import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_lite.config import MixtralConfig
from moe_lite.course import checks
from moe_lite.course.checks.small_mixtral import _count
from moe_lite.course.checks.verdict import Check, CheckBroken, call, judged, same
from moe_lite.course.cost import count_parameters

HERE = Path(__file__).parent
CHECKS = [
    name
    for name in checks.__all__
    if name.startswith("check_") and name != "check_environment"  # of the machine, not of answers
]


def load(path):
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answers(folder, check):
    """Load the answers to a check: (name, function or class), in the order of the file."""
    path = HERE / folder / f"{check}.py"
    if not path.exists():
        return []
    module = load(path)
    return [
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]


MUTANTS = [(check, name, answer) for check in CHECKS for name, answer in answers("mutants", check)]
VARIANTS = [(check, *pair) for check in CHECKS for pair in answers("variants", check)]
# One function in two orders: what is right for the one is right for the other.
VARIANTS += [("check_softmax_order", *pair) for pair in answers("variants", "check_top_k")]
RIGHT = [case for case in MUTANTS if case[1].lower().startswith("right")]
WRONG = [case for case in MUTANTS if case not in RIGHT]


def harvest(folder):
    """Load what was invented without a look at the checks: (check, what was done, ..., answer)."""
    for path in sorted((HERE / folder).glob("harvest_*.py")):
        for check, rows in vars(load(path)).items():
            if check.startswith("check_"):
                for what, *phrase, answer in rows:
                    yield pytest.param(check, *phrase, answer, id=f"{check}-{what}")


INVENTED = {folder: list(harvest(folder)) for folder in ("mutants", "variants")}


@pytest.fixture(autouse=True)
def with_triton(request):
    """Skip the checks of kernels where there is no Triton: there they check nothing, and say so."""
    given = getattr(getattr(request.node, "callspec", None), "params", {}).get("check")
    if given in ("check_masked_product", "check_fused_gather"):
        pytest.importorskip("triton")


def named(cases):
    return [pytest.param(check, answer, id=f"{check}-{name}") for check, name, answer in cases]


@pytest.mark.parametrize(("check", "answer"), named(WRONG))
def test_a_mutant_is_told_its_mistake(check, answer):
    with pytest.raises(checks.CheckFailed) as refused:
        getattr(checks, check)(answer)
    assert inspect.cleandoc(answer.__doc__) in str(refused.value)


@pytest.mark.parametrize(("check", "answer"), named(RIGHT + VARIANTS))
def test_a_right_answer_passes(check, answer, capsys):
    assert getattr(checks, check)(answer) is None
    said = capsys.readouterr().out
    assert said.startswith("✓ ")
    if (check, answer.__name__, answer) in VARIANTS:
        assert inspect.cleandoc(answer.__doc__ or "") in said


@pytest.mark.parametrize(("check", "phrase", "answer"), INVENTED["mutants"])
def test_a_mistake_that_nobody_thought_of_is_told_too(check, phrase, answer):
    with pytest.raises(checks.CheckFailed) as refused:
        getattr(checks, check)(answer)
    assert phrase and phrase in str(refused.value)


@pytest.mark.parametrize(("check", "answer"), INVENTED["variants"])
def test_a_way_that_nobody_thought_of_passes(check, answer, capsys):
    assert getattr(checks, check)(answer) is None
    assert capsys.readouterr().out.startswith("✓ ")


@pytest.mark.parametrize("check", CHECKS)
def test_every_check_was_tried_by_somebody_who_had_not_seen_it(check):
    tried = {folder: [p for p in INVENTED[folder] if p.values[0] == check] for folder in INVENTED}
    assert len(tried["mutants"]) >= 5 and len(tried["variants"]) >= 2


@pytest.mark.slow("every answer again, with other numbers")
@pytest.mark.parametrize("check", CHECKS)
def test_another_seed_puts_other_numbers_and_tells_right_from_wrong_too(check, monkeypatch):
    for at, (_, _, answer) in enumerate(case for case in MUTANTS if case[0] == check):
        seed = 1 + at % 9
        if answer.__name__.lower().startswith("right"):
            getattr(checks, check)(answer, seed=seed)
        else:
            with pytest.raises(checks.CheckFailed):
                getattr(checks, check)(answer, seed=seed)


def differ(case, one, other):
    """Ask whether two mistakes differ on a case, where both give something there."""
    if one is None or other is None:
        return False
    if case.leaves and not same(one[0], case.right[0]):  # a gradient counts beside right numbers
        return not same(one[0], other[0])
    return not same(one, other)


@pytest.mark.parametrize("check", CHECKS)
def test_two_mistakes_are_never_taken_for_each_other(check, monkeypatch):
    """A mistake is named by all cases together; on these no two may give equal numbers."""
    put = []
    monkeypatch.setattr(Check, "judge", lambda self: put.append(self))
    getattr(checks, check)(next(answer for c, _, answer in RIGHT if c == check))
    assert put, "a check judges through the one mechanism"
    for cases in (judge.cases for judge in put):
        sentences = {tuple(text for text, _ in case.mistakes) for case in cases}
        assert len(sentences) <= 1, "a mistake has its place in the list, case for case"
        named_here = sentences.pop() if sentences else ()
        given = [[case.mistakes[i][1] for case in cases] for i in range(len(named_here))]
        for text, ones in zip(named_here, given, strict=True):
            pairs = list(zip(cases, ones, strict=True))
            assert any(v is not None and not same(v, c.right) for c, v in pairs), (
                f"no mistake: {text}"
            )
            for other, others in zip(named_here, given, strict=True):
                assert other == text or any(map(differ, cases, ones, others)), f"{text}\n{other}"


def rounded_elsewhere(value, generator):
    """Move each float by what another order of adding may move it; counts and zeros are exact."""
    if type(value) is tuple:
        return tuple(rounded_elsewhere(part, generator) for part in value)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    moved = value.isfinite() & (value != value.round())
    if not moved.any():
        return value
    noise = torch.rand(value.shape, generator=generator) * 2 - 1
    size = value[moved].abs().median().detach()
    return torch.where(moved, value + (3e-6 * size * noise).to(value.dtype), value)


@pytest.mark.parametrize(
    ("check", "answer"), named([c for c in RIGHT if not isinstance(c[2], type)])
)
def test_a_right_answer_passes_on_a_machine_that_rounds_otherwise(check, answer):
    generator = torch.Generator().manual_seed(0)

    def shaken(*args):
        return rounded_elsewhere(answer(*args), generator)

    getattr(checks, check)(functools.wraps(answer)(shaken))


def hollow(value, change):
    """Put NaN, or nothing, in the place of all numbers of an answer."""
    if dataclasses.is_dataclass(value):
        whole = {name: hollow(part, change) for name, part in vars(value).items()}
        return dataclasses.replace(value, **whole)
    if isinstance(value, dict):
        return {name: hollow(part, change) for name, part in value.items()}
    if isinstance(value, torch.Tensor) or (isinstance(value, int | float) and change is nans):
        return change(torch.as_tensor(value))
    return type(value)(hollow(p, change) for p in value) if type(value) in (tuple, list) else value


def nans(value):
    return torch.full(value.shape, torch.nan, dtype=torch.promote_types(value.dtype, torch.float32))


def nothing(value):
    return value[:0] if value.dim() else value


@pytest.mark.parametrize("change", [nans, nothing])
@pytest.mark.parametrize("check", CHECKS)
def test_no_nan_and_no_empty_tensor_passes(check, change):
    """Every comparison with NaN is false, and all of nothing is true."""
    right = next(answer for c, _, answer in RIGHT if c == check)
    changed = False

    def answer(*args):
        nonlocal changed
        value = right(*args)
        given = hollow(value, change)
        changed |= repr(given) != repr(value)
        return given

    if isinstance(right, type):
        pytest.skip("it makes a router, not numbers")
    try:
        getattr(checks, check)(functools.wraps(right)(answer))
    except checks.CheckFailed:
        return
    assert not changed


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_has_its_mutants(check):
    wrong = [answer.__doc__ for c, _, answer in WRONG if c == check]
    assert len(set(wrong)) >= 3, "a check is only as good as the mistakes it has been shown"
    assert len([c for c, _, _ in RIGHT if c == check]) >= 2, "there is more than one right way"


def test_every_file_of_answers_has_its_check():
    assert {path.stem for path in (HERE / "mutants").glob("check_*.py")} == set(CHECKS)
    assert {path.stem for path in (HERE / "variants").glob("check_*.py")} <= set(CHECKS)


@pytest.mark.parametrize("check", CHECKS)
def test_an_unfilled_exercise_stays_not_implemented(check):
    def unfilled(*args):
        raise NotImplementedError

    with pytest.raises(NotImplementedError) as left:
        getattr(checks, check)(unfilled)
    (line,) = left.value._render_traceback_()  # all that a notebook shows
    exercise = check.removeprefix("check_")
    assert line == f"· {exercise}: not written yet" and left.value.__suppress_context__


def test_an_unfilled_method_stays_not_implemented():
    class Router(torch.nn.Module):
        def __init__(self, hidden_size, num_experts, top_k):
            super().__init__()
            self.gate = torch.nn.Linear(hidden_size, num_experts, bias=False)

        def forward(self, x_TD):
            raise NotImplementedError

    with pytest.raises(NotImplementedError):
        checks.check_global_bug(Router)


def test_a_verdict_shows_the_numbers():
    with pytest.raises(checks.CheckFailed) as refused:
        checks.check_top_k(lambda logits_TE, k: tuple(logits_TE.softmax(-1).topk(k)))
    assert str(refused.value).splitlines() == [
        "top_k: the gates of a token do not add up to 1; divide them by their sum",
        "  given    the logarithms of [[0.1, 0.2, 0.3, 0.4], [0.5, 0.3, 0.15, 0.05], "
        "[0.05, 0.6, 0.1, 0.25]], k = 2",
        "  yours    [[0.4, 0.3], [0.5, 0.3], [0.6, 0.25]], [[3, 2], [0, 1], [1, 3]]",
        "  expected [[0.5714, 0.4286], [0.625, 0.375], [0.7059, 0.2941]], [[3, 2], [0, 1], [1, 3]]",
    ]
    (shown,) = refused.value._render_traceback_()
    assert shown == f"✗ {refused.value}"


def test_an_exception_is_reported_with_the_line_that_raised_it():
    def top_k(logits_TE, k):
        return logits_TE.nonsense(k)

    with pytest.raises(checks.CheckFailed, match="top_k raised AttributeError") as refused:
        checks.check_top_k(top_k)
    assert "at       return logits_TE.nonsense(k)" in str(refused.value)
    assert isinstance(refused.value.__cause__, AttributeError)


configs = st.builds(
    lambda heads, kv, size, E, K, **sizes: MixtralConfig(
        num_attention_heads=heads * kv,
        num_key_value_heads=kv,
        head_dim=2 * size,
        num_local_experts=max(E, K),
        num_experts_per_tok=K,
        **sizes,
    ),
    heads=st.integers(1, 4),
    kv=st.integers(1, 3),
    size=st.integers(1, 8),
    E=st.integers(1, 9),
    K=st.integers(1, 9),
    hidden_size=st.integers(1, 64),
    intermediate_size=st.integers(1, 64),
    num_hidden_layers=st.integers(1, 5),
    vocab_size=st.integers(1, 300),
    tie_word_embeddings=st.booleans(),
)


@given(configs)
def test_the_check_counts_as_the_library_does(config):
    count = count_parameters(config)
    assert _count(config) == (count.total, count.active)


def test_a_mistake_that_explains_one_case_alone_is_not_named():
    """Where two formulas agree by chance, another case has to tell them apart."""

    def check(answer):
        double = Check("double", answer, lambda x: 2 * x, lambda x: [("squared", x * x)])
        for x in (2, 3, 5):
            double.on(f"x = {x}", x)
        double.passed("yes")

    with pytest.raises(checks.CheckFailed, match="double: squared\n  given    x = 3\n  yours    9"):
        check(lambda x: x * x)
    with pytest.raises(checks.CheckFailed, match="this is not what is asked"):
        check(lambda x: 9 if x == 3 else 2 * x)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.round(decimals=2), "rounded to 2 decimals"),
        (lambda x: x[:, None], r"right numbers in the shape \(6, 1\); asked is \(6,\)"),
        (lambda x: 3 * x, "yours is 3 times what is asked"),
        (lambda x: x + 1, r"off by \+1"),
        (lambda x: -x, "the sign is turned round"),
        (lambda x: x.softmax(-1), "one softmax too many"),
        (lambda x: x.sort().values, "in another order"),
        (lambda x: x.log(), "this is the logarithm"),
        (lambda x: x / 0, "a NaN or an infinity"),
        (lambda x: x.bfloat16(), "nearly right, but bfloat16 rounds too much"),
        (lambda x: x + 0j, "not complex numbers"),
        (lambda x: x.to("meta"), "not a meta tensor"),
        (lambda x: x.clone, "the function `clone` itself: call it"),
        (lambda x: x + torch.rand(6), "another answer the second time"),
        (lambda x: x.tolist(), "no gradient reaches x"),
        (lambda x: x.detach(), "no gradient reaches x"),
        (lambda x: x.detach() ** 2 / x, "not the right gradient for x"),
        (lambda x: "many", "return a tensor of shape"),
        (lambda x: x.numpy(), "needs a gradient; right without one"),
        (lambda x: x.add_(1), "changes its input in place"),
    ],
)
def test_numbers_that_no_mistake_explains_are_told_their_form(change, said):
    def check():
        put = Check("change", change, lambda x: x.clone())
        for seed in (1, 2):
            put.on(f"seed {seed}", torch.rand(6, generator=torch.Generator().manual_seed(seed)))
        put.slopes("a slope", torch.linspace(1, 2, 6), of={"x": 0})
        put.passed("yes")

    with pytest.raises(checks.CheckFailed, match=said):
        check()


def test_a_crash_of_the_check_is_not_put_on_the_answer():
    @judged
    def check_broken(answer):
        call("fine", answer, on="nothing")
        raise KeyError("a slip of ours")

    with pytest.raises(CheckBroken, match="says nothing about your answer"):
        check_broken(lambda: 1)


def test_only_the_answer_itself_can_be_unwritten():
    """PyTorch raises NotImplementedError too, of types that it does not compute in."""

    @judged
    def check_broken(answer):
        call("fine", answer, on="nothing")
        raise NotImplementedError('"allclose" not implemented for a type')

    with pytest.raises(CheckBroken, match="says nothing about your answer"):
        check_broken(lambda: 1)
    nowhere = {"torch": torch}  # code without a source to read
    exec("def answer(*args): return torch.ones(2, dtype=torch.uint16).max()", nowhere)
    with pytest.raises(NotImplementedError):
        nowhere["answer"]()
    with pytest.raises(checks.CheckFailed, match="load raised NotImplementedError"):
        checks.check_load(nowhere["answer"])
    exec("def answer(*args): raise NotImplementedError", nowhere)
    with pytest.raises(NotImplementedError, match="load: not written yet"):
        checks.check_load(nowhere["answer"])
    for dtype in (torch.uint16, torch.uint32, torch.uint64):
        checks.check_load(lambda routing, dtype=dtype: routing.load_E().to(dtype))


@pytest.mark.parametrize("check", CHECKS)
def test_whatever_is_returned_is_put_on_the_answer_and_not_on_the_check(check):
    """No `return`, one thing too few or too many: neither a bug of the course nor unwritten."""
    one = torch.zeros(5, 2)
    types = (torch.uint16, torch.float8_e4m3fn, torch.bfloat16, torch.complex64)
    odd_ones = (
        *(None, 0, [], (), torch.tensor(0.0), one, one.numpy(), one.to_sparse(), [one] * 3),
        *(kind for dtype in types for kind in (one.to(dtype), [one.to(dtype)] * 2)),
        *(one.to("meta"), one.max, (one.max, one), ([[1.0], [1.0, 2.0]], one), one[:0], one / 0),
    )
    for odd in odd_ones:

        def answer(*args, odd=odd):
            return odd

        class Router(torch.nn.Module):
            def __init__(self, hidden_size, num_experts, top_k):
                super().__init__()
                self.gate = torch.nn.Linear(hidden_size, num_experts, bias=False)

            def forward(self, x_TD, odd=odd):
                return odd

        with pytest.raises(checks.CheckFailed):
            getattr(checks, check)(Router if check == "check_global_bug" else answer)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (1, 1, True),
        (1, 2, False),
        ((1, torch.ones(2)), (1, torch.ones(2)), True),
        ((1,), (1, 2), False),
        ([1, 2], torch.tensor([1, 2]), True),
        (torch.tensor([1.0, 2.0]).numpy(), torch.tensor([1, 2]), True),
        (torch.tensor([True]), True, True),
        (10**11, 10**11 + 1, False),
        ("Words ", "words", True),
        (torch.ones(2, 1), torch.ones(1, 2), False),
        (torch.ones(2) * torch.nan, torch.ones(2), False),
        (torch.ones(2) + 1e-7, torch.ones(2), True),
        (torch.ones(2, dtype=torch.long), torch.ones(2), True),
        (
            torch.tensor([60.0, 50.0, 2e-5]),
            torch.tensor([60.0, 50.0, 1e-5]),
            True,
        ),  # a sum that cancelled
        (torch.tensor([60.0, 50.0, 2e-3]), torch.tensor([60.0, 50.0, 1e-3]), False),
        (
            torch.tensor([-1e9, 0.5, 1.0]),
            torch.tensor([-1e9, 0.6, 1.0]),
            False,
        ),  # a mask buys no slack
        (torch.tensor([torch.inf, 0.5, 1.0]), torch.tensor([torch.inf, 0.6, 1.0]), False),
        (None, torch.ones(2), False),
        (torch.ones(2, dtype=torch.uint16), torch.ones(2), True),
        (torch.ones(2).to(torch.float8_e4m3fn), torch.ones(2), True),
        (torch.ones(2) + 0j, torch.ones(2), False),
        (torch.ones(2, device="meta"), torch.ones(2), False),
        ([[1.0], [1.0, 2.0]], torch.ones(2), False),
    ],
)
def test_same(a, b, equal):
    assert same(a, b) is equal


def test_the_environment_is_told_what_it_lacks(monkeypatch, capsys):
    from moe_lite.course import machine

    monkeypatch.setattr(machine, "requires", lambda name: ["torch>=2.10", "pytest ; extra == 't'"])
    assert checks.check_environment()
    assert "Everything is here" in capsys.readouterr().out
    lacking = ["torch>=999", "no-such-package>=1.2; extra == 'course'", "numpy", "x; extra == 't'"]
    monkeypatch.setattr(machine, "requires", lambda name: lacking)
    assert not checks.check_environment()
    assert '-m pip install "torch>=999" "no-such-package>=1.2"\n' in capsys.readouterr().out
