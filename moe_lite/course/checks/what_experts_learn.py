"""The checks of chapter 17: what do experts learn?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .verdict import Check, Mistakes, call, generator, number, randn, refuse, same, show


def _draw(rng: torch.Generator, high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=rng)


def _entropy(count: Tensor) -> Tensor:
    share = count.flatten().double() / count.sum()
    return -torch.special.xlogy(share, share).sum() / math.log(2)


def check_information(information: Callable[[Tensor], float]) -> None:
    """Check the mutual information of a table of counts, in bits: (count_CE) -> float."""

    def right(count_CE: Tensor) -> Tensor:
        return _entropy(count_CE.sum(1)) + _entropy(count_CE.sum(0)) - _entropy(count_CE)

    def mistakes(count_CE: Tensor) -> Mistakes:
        label, expert = _entropy(count_CE.sum(1)), _entropy(count_CE.sum(0))
        joint, value, (C, E) = _entropy(count_CE), right(count_CE), count_CE.shape
        p_CE = count_CE.double() / count_CE.sum()
        cells = torch.special.xlogy(p_CE, p_CE * count_CE.numel()).sum() / math.log(2)
        row_CE = count_CE.double() / count_CE.sum(1, keepdim=True)
        rows = torch.special.xlogy(row_CE, row_CE / p_CE.sum(0)).sum() / math.log(2)
        crossed = None
        if C == E:  # else such a product does not even run
            same_E = p_CE.sum(1) * p_CE.sum(0)
            crossed = (torch.special.xlogy(p_CE, p_CE) - torch.special.xlogy(p_CE, same_E)).sum()
            crossed = crossed / math.log(2)
        naive = p_CE * (p_CE / (p_CE.sum(1, keepdim=True) * p_CE.sum(0))).log2()
        return [
            ("NaN; a cell without tokens adds nothing, because p log p goes to 0 with p, but 0 "
             "times log 0 is NaN", naive.sum()),
            ("these are nats; a bit is ln 2 nats, so use log2", value * math.log(2)),
            ("what a label leaves open once the expert is known: H(label|expert)", joint - expert),
            ("what an expert leaves open once the label is known: H(expert|label)", joint - label),
            ("that is the entropy of label and expert together", joint),
            ("that is the label's entropy: the most that there could be to tell", label),
            ("that is the expert's entropy: the most that it could tell", expert),
            ("divided by the label's entropy: a useful share, but no bits", value / label),
            ("labels and experts are not equally frequent: compare with the product of the row's "
             "and the column's share, not with 1 / (C E)", cells),
            ("each label counts as much as every other here, whatever its tokens", rows),
            ("each label counts as much as every other here, and then their mean is taken; weigh "
             "labels by their tokens", rows / C),
            ("the sign: information is never negative", -value),
            ("each cell counts by its share of the tokens, p(c, e): multiply the logarithm by it",
             (naive / p_CE)[p_CE > 0].sum()),
            ("the counts are weighed as they are; make shares of them", value * count_CE.sum()),
            ("p(c) belongs to the rows and p(e) to the columns: keep one's dimension, or each "
             "label is multiplied with the expert of its own number", crossed)]  # fmt: skip

    check = Check("information", information, right, mistakes,
                  "not the sum of p(c, e) log2 of p(c, e) / (p(c) p(e))", nan="NaN; a cell without "
                  "tokens adds nothing, but 0 times log 0 is NaN")  # fmt: skip
    for given, counts in (
        ("the counts [[6, 2], [1, 3]]", torch.tensor([[6, 2], [1, 3]])),
        ("the counts [[4, 0], [0, 12]], which tell all", torch.tensor([[4, 0], [0, 12]])),
        ("the counts [[2, 6], [1, 3]], which tell nothing", torch.tensor([[2, 6], [1, 3]])),
        *((f"{C} labels and {E} experts", torch.floor(randn(C, C, E).exp() * 20).long())
          for C, E in ((5, 8), (3, 3), (8, 2), (2, 64)))):  # fmt: skip
        check.on(given, counts)
    check.passed("so many bits does the expert tell about the label.")


SEEDS = 40


def _null(exercise: str, found: Any, T: int, given: str) -> Tensor:
    """Return the shuffled labels 0 .. T-1, a row for each seed; refuse what no shuffling may do."""
    place_ST = number(found)
    if place_ST is None or place_ST.shape != (SEEDS + 1, T):
        refuse(exercise, f"return a tensor of shape {(T,)}", given)
        raise AssertionError
    again_T, place_ST, here = place_ST[-1], place_ST[:-1].long(), torch.arange(T)
    if not torch.equal(place_ST.sort(-1).values, here.expand(SEEDS, T)):
        refuse(exercise, "some labels are lost and others doubled; a null keeps each as often "
               "as it was", given, str(place_ST[0].tolist()))  # fmt: skip
    if torch.equal(place_ST, here.expand(SEEDS, T)):
        refuse(exercise, "nothing was shuffled", given)
    if not torch.equal(again_T, place_ST[0]):
        refuse(exercise, "the same seed gives another order the second time")
    if len(place_ST.unique(dim=0)) == 1:
        refuse(exercise, "every seed gives the same order, so there is one shuffle and not a null")
    return place_ST


def _many(exercise: str, place_ST: Tensor, given: str) -> bool:
    orders = len(place_ST.unique(dim=0))
    if orders < SEEDS / 2:
        refuse(exercise, f"{SEEDS} seeds give only {orders} orders: each place has to be open to "
               "chance, so do not push all along together", given)  # fmt: skip
    return True


def check_shuffle_texts(shuffle_texts: Callable[[Tensor, int, int], Tensor]) -> None:
    """Check the shuffling of whole texts: (label_T, length, seed) -> label_T."""
    exercise = "shuffle_texts"

    def whole(found: Any, label_T: Tensor, length: int) -> bool:
        given = f"{len(label_T) // length} texts of {length} tokens, labelled 0, 1, 2, ..."
        place_ST = _null(exercise, found, len(label_T), given)
        text_SBS = place_ST.view(SEEDS, -1, length)
        B, moved = text_SBS.shape[1], text_SBS[:, :, :1] // length
        if not (text_SBS // length == moved).all():
            pushed_ST = (place_ST - torch.arange(B * length)) % (B * length)
            if (pushed_ST == pushed_ST[:, :1]).all():
                refuse(exercise, "all tokens were pushed along together: that tears texts apart, "
                       "and what was side by side stays so", given)  # fmt: skip
            turned = place_ST.view(SEEDS, length, B) % B
            if (turned == turned[:, :1]).all():
                refuse(exercise, "a text's tokens lie side by side, not one in each row: view the "
                                 "labels as (texts, length)")  # fmt: skip
            refuse(exercise, "this tears texts apart; tokens of one text resemble each other, so "
                   "they change places together", given, str(place_ST[0].tolist()))  # fmt: skip
        if (moved[..., 0] == torch.arange(B)).all():
            refuse(exercise, "the tokens moved within their own text; a label of the whole text "
                             "then stays where it was, and nothing is shuffled")  # fmt: skip
        if not (text_SBS.diff(dim=-1) > 0).all():
            refuse(exercise, "texts change places as they are; inside them the order stays")
        if (text_SBS == torch.arange(B * length).view(B, length)).all(0).any():
            refuse(exercise, "a text never changes its place, whatever the seed", given)
        return _many(exercise, place_ST, given)

    def every_seed(label_T: Tensor, length: int) -> list[Any]:
        return [shuffle_texts(label_T, length, seed) for seed in (*range(SEEDS), 0)]

    check = Check(exercise, every_seed, lambda label_T, length: True, see=whole)
    for texts, length in ((6, 4), (5, 3), (9, 1), (7, 2)):
        given = f"{texts} texts of {length} tokens, labelled 0, 1, 2, ..., seeds 0 to {SEEDS - 1}"
        check.on(given, torch.arange(texts * length), length)
    check.passed("texts change places whole: as few independent things as there really are.")


def check_shuffle_within_words(shuffle: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """Check the shuffling among tokens of one id: (label_T, ids_T, seed) -> label_T."""
    exercise = "shuffle_within_words"

    def within(found: Any, label_T: Tensor, ids_T: Tensor) -> bool:
        T = len(ids_T)
        given = f"the words {ids_T.tolist()}, labelled 0, 1, 2, ..." if T < 10 else f"{T} tokens"
        place_ST = _null(exercise, found, T, given)
        yours = str(place_ST[0].tolist()) if T < 10 else ""
        if (ids_T[place_ST] == ids_T.sort().values).all():
            refuse(exercise, "each word has its own labels again, but they lie in the order of the "
                   "words; put them back where the tokens are", given, yours)  # fmt: skip
        if not (ids_T[place_ST] == ids_T).all():
            refuse(exercise, "a word gets a label of another word; it keeps its own", given, yours)
        for word in ids_T.unique():
            mine = ids_T == word
            if mine.sum() > 2 and len(place_ST[:, mine].unique(dim=0)) < 3:
                refuse(exercise, "not every word is shuffled", given, yours)
        # Where each word's own tokens went, as places among them: equal words of equal number.
        went = [place_ST[:, mine].argsort(1).argsort(1) for mine in map(ids_T.eq, ids_T.unique())]
        if any(torch.equal(a, b) for a, b in itertools.combinations(went, 2) if a.shape[1] > 1):
            refuse(exercise, "two words that come equally often are always shuffled alike: make "
                   "the generator once, before the words, not anew for each", given)  # fmt: skip
        return _many(exercise, place_ST, given)

    def every_seed(label_T: Tensor, ids_T: Tensor) -> list[Any]:
        return [shuffle(label_T, ids_T, seed) for seed in (*range(SEEDS), 0)]

    check = Check(exercise, every_seed, lambda label_T, ids_T: True, see=within)
    for ids_T in (torch.tensor([7, 2, 7, 2, 7, 2, 7, 9]), _draw(generator(1), 5, 60),
                  1000 * _draw(generator(2), 3, 25), torch.arange(30) * 7 % 5):  # fmt: skip
        check.on(f"{len(ids_T)} tokens, labelled 0, 1, 2, ...", torch.arange(len(ids_T)), ids_T)
    check.passed("every word keeps its labels, and only the places among its tokens change.")


def check_saturation(saturation: Callable[[Tensor, Tensor], float]) -> None:
    """Check OLMoE's eq. 5: (early_TK, final_TK) -> float."""

    def right(early_TK: Tensor, final_TK: Tensor) -> Tensor:
        return (early_TK[:, :, None] == final_TK[:, None]).any(1).double().mean()

    def mistakes(early_TK: Tensor, final_TK: Tensor) -> Mistakes:
        (T, K), E = final_TK.shape, int(torch.cat([early_TK, final_TK]).max()) + 1
        equal_TKK = early_TK[:, :, None] == final_TK[:, None]
        n_T, value = equal_TKK.any(1).sum(1).double(), right(early_TK, final_TK)
        early_E, final_E = (part.flatten().bincount(minlength=E) for part in (early_TK, final_TK))
        return [
            ("order does not matter: compare sets", (early_TK == final_TK).double().mean()),
            ("sorted, equal experts still stand at different places: compare each with each",
             (early_TK.sort(1).values == final_TK.sort(1).values).double().mean()),
            ("eq. 5 divides by k, not by the size of the union", (n_T / (2 * K - n_T)).mean()),
            ("a token counts only if all its experts are the same", (n_T == K).double().mean()),
            ("a token counts if any one of its experts is the same", (n_T > 0).double().mean()),
            ("it is divided by k as well: eq. 5 is a share between 0 and 1", n_T.mean()),
            ("it is a mean over the tokens, not a sum", n_T.sum() / K),
            ("that is what changed; saturation is what stayed", 1 - value),
            ("k is how many experts a token has, not how many there are", n_T.mean() / E),
            ("that is divided by k twice: of the k² comparisons at most k can be equal", value / K),
            ("that asks for each final choice whether any token had it; compare token by token",
             torch.isin(final_TK, early_TK).double().mean()),
            ("only first choices are compared", (early_TK[:, 0] == final_TK[:, 0]).double().mean()),
            ("that compares how often each expert is used, and not token by token",
             torch.minimum(early_E, final_E).sum() / (T * K))]  # fmt: skip

    check = Check("saturation", saturation, right, mistakes,
                  "not the mean share of a token's final experts that it had before")  # fmt: skip
    early_TK, final_TK = [[0, 1], [4, 3], [2, 3], [1, 4]], [[1, 0], [3, 4], [2, 5], [6, 7]]
    check.on(f"early {early_TK}, final {final_TK}", torch.tensor(early_TK), torch.tensor(final_TK))
    for K, E in ((2, 8), (8, 64), (1, 4), (3, 3), (4, 9)):
        scores = randn(K, 40, E)
        later = scores + randn(K + 1, 40, E)
        check.on(f"40 tokens, {K} of {E} experts", scores.topk(K).indices, later.topk(K).indices)
    check.passed("so much of the final routing was there already; chance is k/E.")


def check_repetition(repetition: Callable[[Tensor, int], float]) -> None:
    """Check the share of neighbours with one first choice: (expert_T, length) -> float."""

    def right(expert_T: Tensor, length: int) -> Tensor:
        text_BS = expert_T.view(-1, length)
        return (text_BS[:, 1:] == text_BS[:, :-1]).double().mean()

    def mistakes(expert_T: Tensor, length: int) -> Mistakes:
        text_BS, T, value = expert_T.view(-1, length), len(expert_T), right(expert_T, length)
        pairs, E = T - len(text_BS), int(expert_T.max()) + 1
        across = (expert_T[1:] == expert_T[:-1]).double()
        return [
            ("the last token of a text and the first of the next are no neighbours", across.mean()),
            ("a text of S tokens has S - 1 pairs of neighbours, not S", value * pairs / T),
            ("B texts have B pairs fewer than tokens, not one", value * pairs / (T - 1)),
            *(("the first token of a text has none before it: roll brings the last one there",
               (part == part.roll(1, -1)).double().mean()) for part in (text_BS, expert_T)),
            ("counted across texts; T tokens in B texts have T - B pairs", across.sum() / T),
            ("that is how often the expert changes", 1 - value),
            ("that is a count; give the share of all pairs", value * pairs),
            ("text by text: view the experts as (texts, length)", right(expert_T, T // length)),
            ("that compares tokens at the same place of neighbouring texts",
             (text_BS[1:] == text_BS[:-1]).double().mean()),
            ("chance is for later; give the share itself", value - 1 / E),
            ("chance is for later; give the share itself", value * E),
            ("that is how often a token and the one after the next share an expert",
             (text_BS[:, 2:] == text_BS[:, :-2]).double().mean())]  # fmt: skip

    check = Check("repetition", repetition, right, mistakes,
                  "not the share of neighbours in a text with the same first choice")  # fmt: skip
    small_T = torch.tensor([3, 3, 1, 1, 1, 0, 0, 0])
    check.on(f"experts {small_T.tolist()} in two texts of 4", small_T, 4)
    for texts, length, E in ((5, 7, 8), (3, 20, 3), (4, 4, 5), (30, 3, 4)):
        steps = _draw(generator(length), 2, texts * length)
        check.on(f"{texts} texts of {length}, {E} experts", steps.cumsum(0) // 2 % E, length)
    check.passed("neighbours within a text, and no others.")


ANSWERS = ("nothing", "words", "topic")
Explain = Callable[[Tensor, Tensor, Tensor, int], str]
Routed = tuple[Tensor, Tensor, Tensor, int]
"""expert_T, topic_T, ids_T, length."""


def _routed(cause: str, seed: int, texts: int, length: int, E: int, strength: float) -> Routed:
    """Make texts on 4 topics, routed to E experts for a reason that is known."""
    rng, words = generator(seed), 12

    def rare(share: float) -> Tensor:
        return torch.rand(texts, length, generator=rng) < share

    topic_BS = (torch.arange(texts) % 4)[:, None].expand(-1, length)
    # A topic has words of its own, half of the time; every word occurs on every topic.
    ids_BS = torch.where(rare(0.5), topic_BS * 3 + _draw(rng, 3, texts, length),
                         _draw(rng, words, texts, length))  # fmt: skip
    expert_BS, liked = _draw(rng, E, texts, length), rare(strength)
    if cause == "text":  # each text has an expert that it likes, whatever its topic
        expert_BS = torch.where(liked, _draw(rng, E, texts)[:, None], expert_BS)
    elif cause in ("words", "word alone"):
        expert_BS = torch.where(liked | (cause == "word alone"), ids_BS % E, expert_BS)
    elif cause == "topic":
        own_BS = (topic_BS * 2 + _draw(rng, 2, texts, length)) % E
        expert_BS = torch.where(liked, own_BS, expert_BS)
    elif cause == "both":
        expert_BS = torch.where(liked, (topic_BS + ids_BS) % E, expert_BS)
    return expert_BS.flatten(), topic_BS.flatten(), ids_BS.flatten(), length


WORLDS = ((40, 50, 8, 0.6), (20, 20, 8, 0.9), (80, 60, 7, 0.3))
"""texts, length, experts, strength: what is much in one of them is little in another."""


def check_what_explains(what_explains: Explain) -> None:
    """Check the diagnosis of a routing: (expert_T, topic_T, ids_T, length) -> a word.

    The same causes in worlds of different size and strength: no fixed number of bits parts them.
    """
    exercise = "what_explains"
    causes = (
        ("none", "nothing", "experts dealt at random", {
            "topic": "experts were dealt at random here; a finite text always shows a little "
                     "information, so compare with shuffled labels and not with 0",
            "words": "experts were dealt at random here; neither words nor topics explain them"}),
        ("text", "nothing", "each text likes one expert, whatever its topic", {
            "topic": "each text has its favourite expert here, whatever its topic; texts are "
                     "independent, not their tokens, so shuffle whole texts",
            "words": "each text has its favourite expert here, whatever its topic or words; it is "
                     "settled by shuffling whole texts, before words are asked"}),
        ("words", "words", "experts follow the word", {
            "topic": "the words explain this: each goes to its expert on every topic, and topics "
                     "differ in their words; shuffle labels among tokens of the same word",
            "nothing": "topics and experts do go together here, by way of the words"}),
        ("word alone", "words", "the word alone decides", {
            "topic": "where the word alone decides, shuffles among equal words give the observed "
                     "number again: topic only if it lies above them, by more than rounding",
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

    def five(cause: str, *world: Any) -> list[Any]:
        return [what_explains(*_routed(cause, seed, *world)) for seed in range(1, 6)]

    def settle(said: list[Any], cause: str, *world: Any) -> bool:
        _, right, what, sentences = next(row for row in causes if row[0] == cause)
        texts, length, E, _ = world
        given = f"{what}; {texts} texts of {length} tokens, {E} experts"
        words = [str(word).strip().lower() for word in said]
        for word, raw in zip(words, said, strict=True):
            if word not in ANSWERS:
                refuse(exercise, f"answer with one of {ANSWERS}, not {raw!r}", given)
        # A true null is above 19 of 20 shuffles once in 20 times: of five routings, three decide.
        wrong = [word for word in words if word != right]
        if len(wrong) > 2:
            why = sentences[max(wrong, key=wrong.count)]
            refuse(exercise, why, given, ", ".join(words), right)
        return True

    check = Check(exercise, five, lambda *args: True, see=settle)
    for cause, _, given, _ in causes:
        for world in WORLDS[1:2] if cause == "word alone" else WORLDS:
            check.on(f"{given}; {world[0]} texts of {world[1]} tokens", cause, *world)
    check.passed("against whole texts first, then against the words.")


FIELDS = ("claim", "source", "falsified_if", "measure", "null_is", "verdict")
Investigate = Callable[[Tensor, Tensor, Tensor, int], Mapping[str, Any]]
World = tuple[Tensor, Tensor, Tensor, int]
"""expert_TK, ids_T, domain_T, length."""


def _dealt(seed: int, texts: int, length: int, lean: float, plant: str = "") -> World:
    """Deal 2 of 8 experts to each token by chance, or for a reason that is planted."""
    rng, T = generator(seed), texts * length
    ids_T, domain_T = _draw(rng, 30, T), (torch.arange(texts) % 3).repeat_interleave(length)
    score_TE = torch.rand(T, 8, generator=rng) * torch.linspace(1, lean, 8)
    place_T, word_T = torch.arange(T), _draw(rng, 8, 30)[ids_T]
    likes_T = {
        "": None, "domain": domain_T * 2 + _draw(rng, 2, T), "word": word_T,
        "word and domain": (word_T + domain_T) % 8, "place": place_T % length * 8 // length,
        "neighbour": _draw(rng, 8, T // 2 + 1).repeat_interleave(2)[:T],
        "text": _draw(rng, 8, texts).repeat_interleave(length),
    }[plant]  # fmt: skip
    if likes_T is not None:
        score_TE[place_T, likes_T] += 2.0 * (torch.rand(T, generator=rng) < 0.8)
    return score_TE.topk(2).indices, ids_T, domain_T, length


PLANTS = ("domain", "word", "word and domain", "neighbour", "place", "text")


def check_investigation(investigate: Investigate) -> None:
    """Check a published claim put to a test: (expert_TK, ids_T, domain_T, length) -> its template.

    It cannot know whether the claim is true. It looks at whether the template is filled, whether
    the null is this very routing's (chance has to fall inside it, in worlds of other sizes and
    loads), whether the verdict follows from the numbers, and whether it changes when an effect is
    planted, and again when it is taken away.
    """
    exercise = "investigate"

    def ask(world: World, given: str) -> tuple[float, list[float], bool]:
        found = call(exercise, investigate, *world, on=given)
        value, null, holds = _template(exercise, found)
        if min(null) <= value <= max(null) and holds:
            refuse(exercise, "the verdict does not follow from the numbers: the claim shall hold, "
                   f"and {value:.4g} lies among the null's, {min(null):.4g} to {max(null):.4g} (a "
                   "claim says that there is a pattern: turn it round)", given)  # fmt: skip
        return value, null, holds

    sizes = ((12, 50, 1.3), (9, 20, 1.0), (30, 40, 2.0), (15, 30, 4.0), (6, 60, 8.0), (40, 12, 3.0))
    chance = [ask(_dealt(seed, *size), f"{size[0]} texts of {size[1]} tokens, routed at random")
              for seed, size in enumerate(2 * sizes)]  # fmt: skip
    lucky, many = sum(holds for _, _, holds in chance), len(chance)
    if lucky > 4:  # of 12, with 1 in 20 each: once in five thousand answers that are right
        refuse(exercise, f"on {lucky} of {many} routings dealt at random the claim holds as well; "
               "the null is not what chance gives, or the verdict does not look at it")  # fmt: skip
    if len({value for value, _, _ in chance}) == 1:
        refuse(exercise, "all routings give the same number; measure the routing that is handed in")
    outside = [(value, null) for value, null, _ in chance if not min(null) <= value <= max(null)]
    if len(outside) > many / 2:
        value, null = outside[0]
        refuse(exercise, f"the null is not this routing's: on {len(outside)} of {many} dealt at "
               f"random the number lies outside ({value:.4g}, and chance is said to give "
               f"{min(null):.4g} to {max(null):.4g}); shuffle the routing at hand")  # fmt: skip
    planted = {plant: ask(_dealt(9, 24, 40, 1.2, plant), f"experts follow the {plant}")[2]
               for plant in PLANTS}  # fmt: skip
    if not any(planted.values()):
        refuse(exercise, "the claim never holds, whatever is planted: experts that follow the "
               f"{', '.join(PLANTS)}; a test that cannot say yes tests nothing")  # fmt: skip
    plant = next(plant for plant, holds in planted.items() if holds)
    kept = 0
    for seed in range(5):
        expert_TK, *rest = _dealt(9, 24, 40, 1.2, plant)
        mixed = expert_TK[torch.randperm(len(expert_TK), generator=generator(seed))]
        kept += ask((mixed, *rest), f"experts that followed the {plant}, dealt out anew")[2]  # type: ignore[arg-type]
    if kept > 2:
        refuse(exercise, f"the claim holds where experts follow the {plant}; they are dealt out "
               "anew, so that nothing is left to see, and it holds all the same")  # fmt: skip
    # Of two worlds: one in which a text has favourites for no reason, one with a single answer.
    favours = [_dealt(seed, 24, 40, 1.2, "text") for seed in range(3)]
    if all(ask(world, "each text likes one expert")[2] for world in favours):
        expert_TK, ids_T, domain_T, length = favours[0]
        moved = expert_TK, ids_T, domain_T.roll(8 * length + length // 2), length
        if ask(moved, "domains moved")[0] != ask(favours[0], "each text likes one expert")[0]:
            refuse(exercise, "the claim is about domains, and it holds where each text likes one "
                   "expert, whatever its domain: shuffle whole texts as well")  # fmt: skip
    expert_TK, *rest = _dealt(1, 9, 20, 1.0)
    given = "a routing that sends all tokens to experts 0 and 1"
    found = call(exercise, investigate, expert_TK * 0 + torch.arange(2), *rest, on=given)
    one, all_ = (number(found[field]) for field in ("observed", "null"))
    assert one is not None and all_ is not None
    if bool(one.isfinite()) and not same(all_, one.expand(all_.shape), 1e-4):
        refuse(exercise, "no shuffling changes a routing in which all are equal, and yet the null "
               "differs from the number there: it is not made of the routing that came in", given,
               show(all_), show(one))  # fmt: skip
    check = Check(exercise, investigate)
    check.passed("a claim, what would sink it, a number, its null, and a verdict that follows.")


def _template(exercise: str, found: Any) -> tuple[float, list[float], bool]:
    """Look whether every field is filled; give the number, its null and what follows."""
    if not isinstance(found, Mapping):
        refuse(exercise, f"return the template, a dict, not {found!r}")
    if missing := [field for field in (*FIELDS, "observed", "null", "holds") if field not in found]:
        refuse(exercise, f"the template lacks the field {missing[0]!r}")
    for field in FIELDS:
        text = found[field]
        if not isinstance(text, str) or len(text.strip(" .…\n")) < 3:
            refuse(exercise, f"the field {field!r} is not filled in: {text!r}")
    if not any(map(str.isdigit, found["verdict"])):
        refuse(exercise, f"the verdict names no number: how large is it? {found['verdict']!r}")
    if found["falsified_if"].strip().lower() == found["claim"].strip().lower():
        refuse(exercise, "'falsified_if' repeats the claim; say what would make you drop it")
    holds, value, null = (number(found[field]) for field in ("holds", "observed", "null"))
    if holds is None or holds.numel() != 1 or holds.item() not in (0, 1):
        refuse(exercise, f"'holds' must be True or False, not {found['holds']!r}")
    if value is None or value.numel() != 1:
        refuse(exercise, f"'observed' must be one number, not {found['observed']!r}")
    if null is None or null.numel() < 19:
        refuse(exercise, "'null' must list at least 19 numbers, one for each time that chance was "
               "played; with fewer, 1 in 20 cannot be told")  # fmt: skip
    assert holds is not None and value is not None and null is not None
    if not (value.isfinite().all() and null.isfinite().all()):
        refuse(exercise, "'observed' and 'null' must be finite numbers")
    if null.min() == null.max():
        refuse(exercise, f"the null is {null.flatten()[0]:.4g} each time; that is a formula's "
               "chance, not this routing's, and does not say how far chance strays")  # fmt: skip
    return value.item(), null.double().flatten().tolist(), bool(holds)


def check_read_back(read_back: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check Bayes' rule over routes: (count_V, count_LVR, seen_NL) -> score_NV, in nats."""

    def tables(count_V: Tensor, count_LVR: Tensor, each: float) -> Tensor:
        more = each * count_LVR.shape[-1]
        return ((count_LVR + each) / (count_V[:, None] + more)).log()

    def heard(told_LVR: Tensor, seen_NL: Tensor) -> Tensor:
        return torch.stack([one[:, n].T for one, n in zip(told_LVR, seen_NL.T, strict=True)])

    def right(count_V: Tensor, count_LVR: Tensor, seen_NL: Tensor) -> Tensor:
        word_V = ((count_V + 1) / (count_V + 1).sum()).log()
        return word_V + heard(tables(count_V, count_LVR, 1 / count_LVR.shape[-1]), seen_NL).sum(0)

    def mistakes(count_V: Tensor, count_LVR: Tensor, seen_NL: Tensor) -> Mistakes:
        R = count_LVR.shape[-1]
        word_V = ((count_V + 1) / (count_V + 1).sum()).log()
        told_LNV = heard(tables(count_V, count_LVR, 1 / R), seen_NL)
        score_NV, some_LVR = word_V + told_LNV.sum(0), count_LVR + 1 / R
        of_route = heard((some_LVR / some_LVR.sum(1, keepdim=True)).log(), seen_NL)
        return [
            ("how often a word comes is left out, p(v): a rare word with the right route would "
             "beat a frequent one", told_LNV.sum(0)),
            ("the word's own share is in it once for each layer; once is enough",
             (word_V + told_LNV).sum(0)),
            ("p(r | v) is a share of the word's routes; these are shares of the route's words",
             word_V + of_route.sum(0)),
            ("one sight more in all, spread over the R routes: 1/R for each, not 1",
             word_V + heard(tables(count_V, count_LVR, 1.0), seen_NL).sum(0)),
            ("the counts of a word's routes have one sight more; then so has what they are divided "
             "by", word_V + heard((some_LVR / count_V.clamp(min=1)[:, None]).log(),
                                  seen_NL).sum(0)),
            ("all layers count, not the last alone", word_V + told_LNV[-1]),
            ("all layers count, not the first alone", word_V + told_LNV[0]),
            ("layers are multiplied, as if they did not know of each other: add their logarithms; "
             "this is the logarithm of a mean", word_V + told_LNV.exp().mean(0).log()),
            ("the mean of the layers' logarithms; it is their sum", word_V + told_LNV.mean(0)),
            ("these are probabilities; return their logarithms", score_NV.exp()),
            ("this is p(v | routes), which sums to 1 over the words: the same best word, but asked "
             "is the probability of word and routes together", score_NV.log_softmax(1)),
            ("a word's share is of all the sights, and each word has one more: divide by the sum "
             "of (n + 1)", (count_V + 1).log() - count_V.sum().log() + told_LNV.sum(0)),
            ("each word has one sight more, so all have V more, not one: divide by the sum of "
             "(n + 1)", (count_V + 1).log() - (count_V.sum() + 1).log() + told_LNV.sum(0)),
            ("1/R for each route, and R are all there are, count_LVR.shape[-1], seen or not",
             word_V + heard(((count_LVR + 1 / (seen_NL.max() + 1)) / (count_V[:, None] + 1)).log(),
                            seen_NL).sum(0)),
            *((f"1/R for each route; here it is 1/{n}, whatever R is",
               word_V + heard(((count_LVR + 1 / n) / (count_V[:, None] + 1)).log(),
                              seen_NL).sum(0)) for n in (2, 64)),
            ("one sight more for the word is 1/R for each route; here each route has one, and the "
             "word has one as well",
             word_V + heard(((count_LVR + 1) / (count_V[:, None] + 1)).log(), seen_NL).sum(0)),
            ("1/V where it is 1/R: a word's sight more is spread over the routes, not the words",
             word_V + heard(((count_LVR + 1 / len(count_V)) / (count_V[:, None] + 1)).log(),
                            seen_NL).sum(0)),
            ("one layer's table was asked for the routes of all: each layer has its own",
             word_V + heard(tables(count_V, count_LVR[:1], 1 / R).expand(len(count_LVR), -1, -1),
                            seen_NL).sum(0)),
            ("all words are taken to be equally frequent; p(v) is in count_V",
             told_LNV.sum(0) - math.log(len(count_V))),
            ("these are bits; log is the natural one", score_NV / math.log(2)),
            ("the words have no sight more; a word that never came is not impossible",
             (count_V / count_V.sum()).log() + told_LNV.sum(0) if count_V.all() else None),
        ]  # fmt: skip

    check = Check("read_back", read_back, right, mistakes,
                  "not log p(v) plus the sum over layers of log p(r | v)",
                  nan="a word that never came, or never took a route, is not impossible: begin "
                  "with one sight")  # fmt: skip
    check.on("counts [2, 1, 0], one layer: word 0 by route 1 twice, word 1 by route 0; seen [[1]]",
             torch.tensor([2, 1, 0]), torch.tensor([[[0, 2], [1, 0], [0, 0]]]),
             torch.tensor([[1]]))  # fmt: skip
    for seed, (T, V, L, R, N) in enumerate(((60, 5, 2, 3, 4), (40, 4, 3, 6, 7), (30, 6, 2, 2, 3))):
        rng = generator(seed)
        word_T = torch.cat([torch.arange(V), _draw(rng, V, T)])
        route_TL = (word_T[:, None] + _draw(rng, 2, len(word_T), L)) % R
        both_TL = word_T[:, None] * R + route_TL
        count_LVR = torch.stack([n.bincount(minlength=V * R).view(V, R) for n in both_TL.T])
        check.on(f"{T + V} tokens of {V} words, {L} layers, {R} routes, of which the last is not "
                 "seen", word_T.bincount(), count_LVR, _draw(rng, R - 1, N, L))  # fmt: skip
    check.passed("the word's own share, and what each layer's route says for it.")


def check_use_difference(use_difference: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """Check whom two texts use differently: (one_TK, two_SK, num_experts) -> delta_E."""

    def count(x: Tensor, E: int) -> Tensor:
        return x.flatten().bincount(minlength=E).double()

    def right(one: Tensor, two: Tensor, E: int) -> Tensor:
        return count(one, E) / len(one) - count(two, E) / len(two)

    def mistakes(one: Tensor, two: Tensor, E: int) -> Mistakes:
        (T, K), S, delta_E = one.shape, len(two), right(one, two, E)
        one_E, two_E = count(one, E), count(two, E)
        return [
            ("these are shares of the pairs; asked are shares of the tokens, K times as large",
             delta_E / K),
            ("these are counts; texts of unequal length are compared by their shares",
             one_E - two_E),
            ("both were divided by the first text's tokens; each by its own", (one_E - two_E) / T),
            ("both were divided by the second text's tokens; each by its own", (one_E - two_E) / S),
            ("both were divided by all tokens; each by its own", (one_E - two_E) / (T + S)),
            ("only first choices were counted; all K of a token count",
             right(one[:, :1], two[:, :1], E) if K > 1 else None),
            ("the sign: the first text less the second", -delta_E),
            ("without a sign nobody knows which way to steer", delta_E.abs()),
            ("below 0 stands whom to send down: keep it", delta_E.clamp(min=0)),
            ("shares of the pairs, made shares of tokens with a K of 2; K is one_TK.shape[1]",
             2 * delta_E / K),
            ("these are divided by the number of experts; a share is of the tokens",
             (one_E - two_E) / E),
            ("only as many tokens of the longer text were counted as the shorter has: each text "
             "counts whole", right(one[: min(T, S)], two[: min(T, S)], E)),
            ("all choices of the first text, and the first ones alone of the second",
             right(one, two[:, :1], E) if K > 1 else None),
            ("this is the share in the first text alone", one_E / T),
            ("a ratio blows up where an expert is hardly used; asked is the difference",
             (one_E / T) / (two_E / S) if two_E.all() else None),
            ("an expert's pairs were divided by its pairs in both texts, which asks whose they "
             "are, not how many tokens go there",
             (one_E - two_E) / (one_E + two_E).clamp(min=1))]  # fmt: skip

    check = Check("use_difference", use_difference, right, mistakes,
                  "not the share of the first text's tokens less that of the second's")  # fmt: skip
    check.on("three experts; [[0, 1], [0, 2]] and [[1, 2], [2, 1], [1, 0], [2, 1]]",
             torch.tensor([[0, 1], [0, 2]]), torch.tensor([[1, 2], [2, 1], [1, 0], [2, 1]]),
             3)  # fmt: skip
    for seed, (T, S, E, K) in enumerate(((9, 14, 8, 2), (20, 7, 6, 3), (11, 5, 4, 1))):
        one, two = (randn(seed + n, N, E).argsort(1)[:, :K] for n, N in ((3, T), (8, S)))
        check.on(f"{T} and {S} tokens, {K} of {E} experts", one, two, E)
    lazy = randn(20, 12, 5).argsort(1)[:, :2]
    check.on("six experts, of which nobody uses the last", lazy, lazy[:7].flip(0), 6)
    check.passed("the experts to send up, and those to send down.")
