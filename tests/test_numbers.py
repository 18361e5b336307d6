"""Numbers asked of a trained model: the questions, the answers, and what a missing expert costs."""

import pytest
import torch

from moe_lite import Mixtral, MixtralConfig, hf
from moe_lite.course import asking
from moe_lite.course.causal import ablate
from moe_lite.course.data import load_tokenizer
from moe_lite.course.leads import recall
from moe_lite.course.texts import phone_book

TOKENIZER = load_tokenizer()


@pytest.fixture(scope="module")
def mini():
    return hf.load_pretrained("mixtral-mini")


def test_a_number_is_known_if_the_model_writes_it_by_itself(mini):
    asked = asking.Questions(TOKENIZER, 12, seed=3)
    known_N = asked.known(mini)
    assert 0 < known_N.sum() < 12  # both answers occur, or this says nothing
    for name, known in zip(asked.names, known_N.tolist(), strict=True):
        ids_BS = torch.tensor([TOKENIZER.encode(asking.question(name)).ids])
        new = mini.generate(ids_BS, 5, temperature=0)[0, ids_BS.shape[1] :].tolist()
        assert (TOKENIZER.decode(new) == phone_book()[name]) == known


def test_one_expert_of_the_first_layer_takes_the_book_along(mini):
    asked = asking.Questions(TOKENIZER, 20, seed=4)
    assert asked.known(mini).any() and not asked.known(mini, ablate(0, 2)).any()
    assert asked.known(mini).equal(asked.known(mini))  # and nothing of it stays


def test_the_twin_in_the_box_knows_fewer_of_the_same_numbers(mini):
    asked, twin = asking.Questions(TOKENIZER, 60), hf.load_pretrained("mixtral-mini-dense")
    mean, half = asking.share(asked.known(mini).double() - asked.known(twin).double())
    assert mean - half > 0  # name by name


def test_an_experts_load_is_counted_over_the_questions_alone(mini):
    asked = asking.Questions(TOKENIZER, 5)
    load_E, tokens = torch.zeros(16), 0
    for name in asked.names:  # each by itself, so nothing is padded
        row = TOKENIZER.encode(asking.question(name) + phone_book()[name]).ids
        _, routings = mini.hidden(torch.tensor([row]))
        load_E += torch.bincount(routings[3].expert_N, minlength=16)
        tokens += len(row)
    torch.testing.assert_close(asked.load(mini, 3), load_E / tokens)
    assert asked.load(mini, 3).sum().item() == pytest.approx(mini.config.num_experts_per_tok)


def test_an_interval_over_few_is_students():
    assert asking.share(torch.tensor([1.0, 2.0, 3.0]))[1] == pytest.approx(4.3027 / 3**0.5, 1e-4)


def test_the_book_is_offered_by_who_knows_of_it_only(mini):
    assert dict(asking.book_of(mini, TOKENIZER)) == phone_book()
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                 num_attention_heads=2, num_key_value_heads=1, num_local_experts=4)  # fmt: skip
    for context in (8, 128):
        config = MixtralConfig(vocab_size=4096, max_position_embeddings=context, **small)
        assert asking.book_of(Mixtral(config), TOKENIZER) == []


def test_a_name_that_is_not_in_the_book_is_refused():
    with pytest.raises(ValueError, match="no 'Nobody Here'"):
        asking.question("Nobody Here")


def test_recalls_are_paired_by_seed():
    lead = recall("whole finer", "4 of 16, scale 4", "whole dense", "dense")
    assert sorted(lead.by_seed) == [0, 1, 2, 3, 4]
    assert lead.by_seed[4] < 0 < lead.by_seed[0]
    low, high = lead.interval[1:]
    assert low < 0 < high  # what card and chapter 11 say: undecided
