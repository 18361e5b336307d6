"""The checks of chapter 17: what do experts learn?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .verdict import CheckFailed, Mistakes, call, expect, passed, randn


def _plain(value: Any) -> Any:
    """Take a tensor or an array of one element, and a NumPy scalar, for the value in it."""
    return value.item() if getattr(value, "shape", None) in ((), (1,)) else value


def _number(exercise: str, value: Any) -> Tensor:
    """Bring an int, a float or a tensor of one element to one kind, for comparing by rounding."""
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckFailed(f"{exercise}: return one number, not {value!r}")
    return torch.tensor(float(value), dtype=torch.float64)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- how much does an expert tell about a label? -------------------------------------------------


def _entropy(count: Tensor) -> Tensor:
    share = count.flatten() / count.sum()
    return -torch.special.xlogy(share, share).sum() / math.log(2)


def check_information(information: Callable[[Tensor], float]) -> None:
    """Check the mutual information of a table of counts, in bits: (count_CE) -> float.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "information"

    def run(given: str, count_CE: Tensor) -> None:
        yours = _number(exercise, call(exercise, information, count_CE, on=given))
        if yours.isnan():
            raise CheckFailed(
                f"{exercise}: NaN; a cell without tokens adds nothing, because p log p goes to 0 "
                f"with p, but 0 times log 0 is NaN\n  given    {given}"
            )
        label, expert = _entropy(count_CE.sum(1)), _entropy(count_CE.sum(0))
        joint = _entropy(count_CE)
        right = label + expert - joint
        p_CE = count_CE.double() / count_CE.sum()
        cells = torch.special.xlogy(p_CE, p_CE * count_CE.numel()).sum() / math.log(2)
        row_CE = count_CE.double() / count_CE.sum(1, keepdim=True)
        rows = torch.special.xlogy(row_CE, row_CE / p_CE.sum(0)).sum() / math.log(2)
        mistakes = [
            ("these are nats; a bit is ln 2 nats, so use log2", right * math.log(2)),
            ("that is what the label leaves open once the expert is known, H(label | expert)",
             joint - expert),
            ("that is what the expert leaves open once the label is known, H(expert | label)",
             joint - label),
            ("that is the entropy of label and expert together", joint),
            ("that is the label's entropy: the most that there could be to tell", label),
            ("that is the expert's entropy: the most that it could tell", expert),
            ("that is divided by the label's entropy; the share is useful, but these are no bits",
             right / label),
            ("labels and experts are not equally frequent: compare with the product of the row's "
             "and the column's share, not with 1 / (C E)", cells),
            ("each label counts as much as every other here; a label with few tokens counts "
             "little", rows),
            ("and the same averaged over the labels is not weighed by their tokens",
             rows / len(count_CE)),
            ("the sign: information is never negative", -right),
        ]  # fmt: skip
        if len(count_CE) == count_CE.shape[1]:  # else such a product does not even run
            same_E = p_CE.sum(1) * p_CE.sum(0)
            mistakes.append((
                "p(c) belongs to the rows and p(e) to the columns: keep one's dimension, or each "
                "label is multiplied with the expert of its own number",
                (torch.special.xlogy(p_CE, p_CE) - torch.special.xlogy(p_CE, same_E)).sum()
                / math.log(2)))  # fmt: skip
        expect(exercise, given, yours, right.double(), mistakes,
               "not the sum of p(c, e) log2 of p(c, e) / (p(c) p(e))")  # fmt: skip

    run("the counts [[6, 2], [1, 3]]", torch.tensor([[6, 2], [1, 3]]))
    run("the counts [[4, 0], [0, 12]], which tell all", torch.tensor([[4, 0], [0, 12]]))
    run("the counts [[2, 6], [1, 3]], which tell nothing", torch.tensor([[2, 6], [1, 3]]))
    run("five labels and eight experts", torch.floor(randn(0, 5, 8).exp() * 20).long())
    passed(exercise, "so many bits does the expert tell about the label.")


# --- two ways to shuffle -------------------------------------------------------------------------


def _shuffles(exercise: str, shuffle: Callable[[int], Any], given: str, T: int) -> list[Tensor]:
    """Run three seeds on the labels 0 .. T-1; tell what no shuffling may do."""
    found = [shuffle(seed) for seed in (0, 1, 2)]
    for place_T in found:
        if not isinstance(place_T, Tensor) or place_T.shape != (T,):
            got = tuple(place_T.shape) if isinstance(place_T, Tensor) else repr(place_T)
            raise CheckFailed(f"{exercise}: return one tensor of shape {(T,)}, not {got}")
        if not torch.equal(place_T.sort().values, torch.arange(T).to(place_T.dtype)):
            raise CheckFailed(
                f"{exercise}: some labels are lost and others doubled; a null keeps each label "
                f"as often as it was\n  given    {given}\n  yours    {place_T.tolist()}"
            )
    if all(torch.equal(place_T, torch.arange(T)) for place_T in found):
        raise CheckFailed(f"{exercise}: nothing was shuffled\n  given    {given}")
    if all(torch.equal(place_T, found[0]) for place_T in found):
        raise CheckFailed(
            f"{exercise}: every seed gives the same order, so there is one shuffle and not a null"
        )
    if not torch.equal(shuffle(0), found[0]):
        raise CheckFailed(f"{exercise}: the same seed gives another order the second time")
    return found


def check_shuffle_texts(shuffle_texts: Callable[[Tensor, int, int], Tensor]) -> None:
    """Check the shuffling of whole texts: (label_T, length, seed) -> label_T.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "shuffle_texts"
    for texts, length in ((6, 4), (5, 3)):
        T, given = texts * length, f"{texts} texts of {length} tokens, labelled 0, 1, 2, ..."

        def shuffle(seed: int, T: int = T, length: int = length, given: str = given) -> Any:
            labels_T = torch.arange(T)
            return call(exercise, shuffle_texts, labels_T, length, seed, on=f"{given}, seed {seed}")

        for place_T in _shuffles(exercise, shuffle, given, T):
            text_BS = place_T.view(texts, length)
            whole = (text_BS // length == text_BS[:, :1] // length).all()
            in_order = (text_BS[:, 1:] > text_BS[:, :-1]).all()
            turned = place_T.view(length, texts)
            if not whole and (turned % texts == turned[0] % texts).all():
                raise CheckFailed(
                    f"{exercise}: a text's tokens lie side by side, not one in each row: view the "
                    f"labels as (texts, length)"
                )
            if not whole:
                raise CheckFailed(
                    f"{exercise}: this tears texts apart; tokens of one text resemble each other, "
                    f"so they have to change places together\n  given    {given}\n"
                    f"  yours    {place_T.tolist()}"
                )
            if torch.equal(text_BS[:, 0] // length, torch.arange(texts)):
                if in_order:
                    continue  # texts can come back in their old order by chance, but not 3 times
                raise CheckFailed(
                    f"{exercise}: the tokens moved within their own text; a label of the whole "
                    f"text then stays where it was, and nothing is shuffled"
                )
            if not in_order:
                raise CheckFailed(
                    f"{exercise}: texts change places as they are; inside them the order stays"
                )
    passed(exercise, "texts change places whole: as few independent things as there really are.")


def check_shuffle_within_words(shuffle: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """Check the shuffling among tokens of one id: (label_T, ids_T, seed) -> label_T.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "shuffle_within_words"
    small_T = torch.tensor([7, 2, 7, 2, 7, 2, 7, 9])
    large_T = torch.randint(5, (60,), generator=_generator(1))
    for ids_T in (small_T, large_T):
        T = len(ids_T)
        given = f"the words {ids_T.tolist()}, labelled 0, 1, 2, ..." if T < 10 else "60 tokens"

        def run(seed: int, ids_T: Tensor = ids_T, given: str = given) -> Any:
            labels_T = torch.arange(len(ids_T))
            return call(exercise, shuffle, labels_T, ids_T, seed, on=f"{given}, seed {seed}")

        for place_T in _shuffles(exercise, run, given, T):
            if torch.equal(ids_T[place_T], ids_T):
                continue
            numbers = f"\n  given    {given}\n  yours    {place_T.tolist()}" if T < 10 else ""
            if torch.equal(ids_T[place_T], ids_T.sort().values):
                raise CheckFailed(
                    f"{exercise}: each word has its own labels again, but they lie in the order "
                    f"of the words; put them back where the tokens are{numbers}"
                )
            raise CheckFailed(
                f"{exercise}: a word gets a label of another word; what is to stay is how often "
                f"each word has each label{numbers}"
            )
    passed(exercise, "every word keeps its labels, and only the places among its tokens change.")


# --- over training, and along a text -------------------------------------------------------------


def check_saturation(saturation: Callable[[Tensor, Tensor], float]) -> None:
    """Check OLMoE's eq. 5: (early_TK, final_TK) -> float.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "saturation"

    def run(given: str, early_TK: Tensor, final_TK: Tensor, E: int) -> None:
        yours = _number(exercise, call(exercise, saturation, early_TK, final_TK, on=given))
        T, K = final_TK.shape
        pairs = zip(early_TK.tolist(), final_TK.tolist(), strict=True)
        shared = [(len(set(a) & set(b)), len(set(a) | set(b))) for a, b in pairs]
        right = sum(n for n, _ in shared) / (T * K)
        values = [
            ("the order of a token's choices does not matter here: compare sets",
             (early_TK == final_TK).double().mean()),
            ("eq. 5 divides by k, not by the size of the union",
             sum(n / u for n, u in shared) / T),
            ("that counts a token only if all its experts are the same",
             sum(n == K for n, _ in shared) / T),
            ("that counts a token if any one of its experts is the same",
             sum(n > 0 for n, _ in shared) / T),
            ("it is divided by k as well: eq. 5 is a share between 0 and 1",
             sum(n for n, _ in shared) / T),
            ("that is what changed; saturation is what stayed", 1 - right),
            ("k is how many experts a token has, not how many there are", right * K / E),
            ("that is divided by k twice: of the k² comparisons at most k can be equal",
             right / K),
            ("that asks for each final choice whether any token had it; compare token by token",
             torch.isin(final_TK, early_TK).double().mean()),
            ("only first choices are compared here",
             (early_TK[:, 0] == final_TK[:, 0]).double().mean()),
            ("that compares how often each expert is used, and not token by token",
             torch.minimum(early_TK.flatten().bincount(minlength=E),
                           final_TK.flatten().bincount(minlength=E)).sum() / (T * K)),
        ]  # fmt: skip
        mistakes = [(text, torch.as_tensor(v, dtype=torch.float64)) for text, v in values]
        expect(exercise, given, yours, torch.tensor(right, dtype=torch.float64), mistakes,
               "not the mean share of a token's final experts that it had before")  # fmt: skip

    early_TK, final_TK = [[0, 1], [4, 3], [2, 3], [1, 4]], [[1, 0], [3, 4], [2, 5], [6, 7]]
    run(f"early {early_TK}, final {final_TK}", torch.tensor(early_TK), torch.tensor(final_TK), 8)
    for K, E in ((2, 8), (8, 64), (1, 4)):
        scores = randn(K, 40, E)
        later = scores + randn(K + 1, 40, E)
        run(f"40 tokens, {K} of {E} experts", scores.topk(K).indices, later.topk(K).indices, E)
    passed(exercise, "so much of the final routing was there already; chance is k/E.")


def check_repetition(repetition: Callable[[Tensor, int], float]) -> None:
    """Check the share of neighbours with one first choice: (expert_T, length) -> float.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "repetition"

    def run(given: str, expert_T: Tensor, length: int) -> None:
        yours = _number(exercise, call(exercise, repetition, expert_T, length, on=given))
        text_BS = expert_T.view(-1, length)
        same = (text_BS[:, 1:] == text_BS[:, :-1]).double()
        right, T = same.mean(), len(expert_T)
        across = (expert_T[1:] == expert_T[:-1]).double()
        mistakes: Mistakes = [
            ("the last token of a text and the first of the next are no neighbours",
             across.mean()),
            ("a text of S tokens has S - 1 pairs of neighbours, not S", same.sum() / T),
            ("texts are not to be counted across, and T tokens in B texts have T - B pairs",
             across.sum() / T),
            ("that is how often the expert changes", 1 - right),
            ("that is a count; give the share of all pairs", same.sum()),
            ("a text's tokens lie side by side: view the experts as (texts, length)",
             (expert_T.view(length, -1)[:, 1:] == expert_T.view(length, -1)[:, :-1])
             .double().mean()),
            ("that compares tokens at the same place of neighbouring texts",
             (text_BS[1:] == text_BS[:-1]).double().mean()),
            ("chance is for later; give the share itself", right - 1 / (int(expert_T.max()) + 1)),
            ("that is how often a token and the one after the next share an expert",
             (text_BS[:, 2:] == text_BS[:, :-2]).double().mean()),
        ]  # fmt: skip
        expect(exercise, given, yours, right, mistakes,
               "not the share of neighbours in a text with the same first choice")  # fmt: skip

    small_T = torch.tensor([3, 3, 1, 1, 1, 0, 0, 0])
    run(f"experts {small_T.tolist()} in two texts of 4", small_T, 4)
    for texts, length, E in ((5, 7, 8), (3, 20, 3)):
        steps = torch.randint(2, (texts * length,), generator=_generator(length))
        run(f"{texts} texts of {length}, {E} experts", steps.cumsum(0) // 2 % E, length)
    passed(exercise, "neighbours within a text, and no others.")


# --- what explains it? ---------------------------------------------------------------------------

ANSWERS = ("nothing", "words", "topic")
Explain = Callable[[Tensor, Tensor, Tensor, int], str]


def _routed(cause: str, seed: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """Make 40 texts of 50 tokens on 4 topics, routed to 8 experts for a reason that is known."""
    rng, texts, length, words, E = _generator(seed), 40, 50, 12, 8

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=rng)

    def rare(share: float) -> Tensor:
        return torch.rand(texts, length, generator=rng) < share

    topic_B = torch.arange(texts) % 4
    topic_BS = topic_B[:, None].expand(-1, length)
    # A topic has words of its own, half of the time; every word occurs on every topic.
    ids_BS = torch.where(rare(0.5), topic_BS * 3 + draw(3, texts, length),
                         draw(words, texts, length))  # fmt: skip
    expert_BS = draw(E, texts, length)
    if cause == "text":  # each text has an expert that it likes, whatever its topic
        liked_B = draw(E, 10).repeat_interleave(4)[torch.randperm(texts, generator=rng)]
        expert_BS = torch.where(rare(0.5), liked_B[:, None], expert_BS)
    elif cause == "words":
        expert_BS = torch.where(rare(0.8), ids_BS % E, expert_BS)
    elif cause == "topic":
        expert_BS = torch.where(rare(0.6), topic_BS * 2 + draw(2, texts, length), expert_BS)
    elif cause == "both":
        expert_BS = torch.where(rare(0.6), (topic_BS + ids_BS) % E, expert_BS)
    return expert_BS.flatten(), topic_BS.flatten(), ids_BS.flatten(), length


def check_what_explains(what_explains: Explain) -> None:
    """Check the diagnosis of a routing: (expert_T, topic_T, ids_T, length) -> a word.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "what_explains"
    cases = (
        ("none", "nothing", "8 experts dealt at random", {
            "topic": "experts were dealt at random here; a finite text always shows a little "
                     "information, so compare with shuffled labels and not with 0",
            "words": "experts were dealt at random here; neither words nor topics explain them"}),
        ("text", "nothing", "each text likes one expert, whatever its topic", {
            "topic": "each text has its favourite expert here, whatever its topic; 40 texts are "
                     "40 independent things, not 2,000, so shuffle whole texts",
            "words": "each text has its favourite expert here, whatever its topic or words; it is "
                     "settled by shuffling whole texts, before words are asked"}),
        ("words", "words", "experts follow the word", {
            "topic": "the words explain this: each goes to its expert on every topic, and topics "
                     "differ in their words; shuffle labels among tokens of the same word",
            "nothing": "topics and experts do go together here, by way of the words"}),
        ("topic", "topic", "experts follow the topic", {
            "words": "the same word goes to other experts on another topic here: words do not "
                     "explain it",
            "nothing": "topics and experts do go together here, far above shuffled texts"}),
        ("both", "topic", "experts follow word and topic together", {
            "words": "the same word goes to other experts on another topic here: words do not "
                     "explain it all",
            "nothing": "topics and experts do go together here, far above shuffled texts"}),
    )  # fmt: skip
    for cause, right, given, mistakes in cases:
        # A true null is above 19 of 20 shuffles once in 20 times: of three routings, two decide.
        made = [_routed(cause, seed) for seed in (1, 2, 3)]
        said = [call(exercise, what_explains, *routed, on=given) for routed in made]
        for word in said:
            if word not in ANSWERS:
                raise CheckFailed(f"{exercise}: answer with one of {ANSWERS}, not {word!r}")
        wrong = [word for word in said if word != right]
        if len(wrong) > 1:
            raise CheckFailed(
                f"{exercise}: {mistakes[max(wrong, key=wrong.count)]}\n  given    {given}\n"
                f"  yours    {', '.join(said)}\n  expected {right}"
            )
    passed(exercise, "against whole texts first, then against the words.")


# --- the capstone --------------------------------------------------------------------------------

WORDS = ("claim", "source", "falsified_if", "measure", "null_is", "verdict")
FIELDS = (*WORDS, "observed", "null", "holds")
Investigate = Callable[[Tensor, Tensor, Tensor, int], Mapping[str, Any]]


def check_investigation(investigate: Investigate) -> None:
    """Check a published claim put to a test: (expert_TK, ids_T, domain_T, length) -> its template.

    It cannot know whether the claim is true. It looks at whether the template is filled, whether
    a null was computed from this very routing, whether the verdict follows from the numbers, and
    whether a routing dealt at random would have passed as well.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "investigate"
    observed = []
    lucky = 0
    for seed in range(5):
        rng = _generator(seed)
        score_TE = torch.rand(600, 8, generator=rng) * torch.linspace(1, 1.3, 8)
        ids_T = torch.randint(30, (600,), generator=rng)
        domain_T = (torch.arange(12) % 3).repeat_interleave(50)
        given = "12 texts of 50 tokens, routed at random to 2 of 8 experts"
        found = call(exercise, investigate, score_TE.topk(2).indices, ids_T, domain_T, 50, on=given)
        value, null, holds = _template(exercise, found)
        observed.append(value)
        inside = min(null) <= value <= max(null)
        if inside and holds:
            raise CheckFailed(
                f"{exercise}: the verdict does not follow from the numbers: {value:.4g} lies among "
                f"the null's ({min(null):.4g} to {max(null):.4g}), and yet the claim shall hold"
            )
        lucky += holds
    if lucky > 2:
        raise CheckFailed(
            f"{exercise}: on {lucky} of 5 routings dealt at random the claim holds as well; either "
            "the null is not what chance would give, or the verdict does not look at it"
        )
    if len(set(observed)) == 1:
        raise CheckFailed(
            f"{exercise}: five different routings give the same number, {observed[0]:.4g}; measure "
            "the routing that is handed in"
        )
    passed(exercise, "a claim, what would sink it, a number, its null, and a verdict that follows.")


def _template(exercise: str, found: Any) -> tuple[float, list[float], bool]:
    """Look whether every field is filled; give the number, its null and what follows."""
    if not isinstance(found, Mapping):
        raise CheckFailed(f"{exercise}: return the template, a dict, not {found!r}")
    if missing := [field for field in FIELDS if field not in found]:
        raise CheckFailed(f"{exercise}: the template lacks the field {missing[0]!r}")
    for field in WORDS:
        text = found[field]
        if not isinstance(text, str) or len(text.strip(" .…\n")) < 3:
            raise CheckFailed(f"{exercise}: the field {field!r} is not filled in: {text!r}")
    if found["falsified_if"].strip().lower() == found["claim"].strip().lower():
        raise CheckFailed(
            f"{exercise}: 'falsified_if' repeats the claim; say what would make you drop it"
        )
    holds = _plain(found["holds"])
    if not isinstance(holds, bool):
        raise CheckFailed(f"{exercise}: 'holds' must be True or False, not {found['holds']!r}")
    value = float(_number(f"{exercise}, 'observed'", found["observed"]))
    null = found["null"]
    null = null.flatten().tolist() if hasattr(null, "flatten") else null  # torch's or NumPy's
    if not isinstance(null, list | tuple) or len(null) < 19:
        raise CheckFailed(
            f"{exercise}: 'null' must list at least 19 numbers, one for each time that chance was "
            f"played; with fewer, 1 in 20 cannot be told"
        )
    null = [float(_number(f"{exercise}, 'null'", x)) for x in null]
    if not all(map(math.isfinite, [value, *null])):
        raise CheckFailed(f"{exercise}: 'observed' and 'null' must be finite numbers")
    if min(null) == max(null):
        raise CheckFailed(
            f"{exercise}: the null is {null[0]:.4g} each time; that is a formula's chance, not a "
            "null computed from this routing, and it does not say how far chance strays"
        )
    return value, null, holds
