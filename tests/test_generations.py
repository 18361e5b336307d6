"""A trace of a generation is the trace of the text that came out, however it was made."""

import pytest
import torch

from moe_lite import Mixtral, MixtralConfig, hf
from moe_lite.trace import record

transformers = pytest.importorskip("transformers")
PROMPTS = torch.tensor([[5, 9, 5, 9, 5, 9, 5], [7, 3, 4, 7, 3, 4, 7]])
SIZES = dict(
    vocab_size=40, hidden_size=32, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, num_local_experts=6, num_experts_per_tok=2,
    max_position_embeddings=64,
)  # fmt: skip


def theirs(seed=0, **sizes):
    torch.manual_seed(seed)
    config = transformers.MixtralConfig(**(SIZES | sizes), pad_token_id=0, eos_token_id=None)
    model = transformers.MixtralForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model


def held_to_a_plain_pass(trace, model, texts, mask=None):
    """Compare with one forward pass over the returned texts, up to where they were read."""
    read = len(trace.tokens) // len(texts)
    assert texts.shape[1] - 1 <= read <= texts.shape[1]
    assert trace.tokens == [str(i) for i in texts[:, :read].flatten().tolist()]
    kwargs = {} if mask is None else {"attention_mask": mask[:, :read]}
    with record(model) as rec, torch.no_grad():
        model(texts[:, :read], **kwargs)
    plain = rec.trace
    assert trace.layer_names == plain.layer_names and trace.rules == plain.rules
    assert trace.position_T.equal(plain.position_T) and trace.text_T.equal(plain.text_T)
    for mine, other in zip(trace.layers, plain.layers, strict=True):
        torch.testing.assert_close(mine.gates_TE(), other.gates_TE(), atol=1e-5, rtol=1e-4)
        seen_T = slice(None) if mine.mask_T is None else mine.mask_T
        torch.testing.assert_close(
            mine.probs_TE[seen_T], other.probs_TE[seen_T], atol=1e-5, rtol=1e-4
        )
        assert (mine.mask_T is None) == (other.mask_T is None)
        assert mine.mask_T is None or mine.mask_T.equal(other.mask_T)


MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 2.0},
    "no cache": {"do_sample": False, "use_cache": False},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
    "prefill in chunks": {"do_sample": False, "prefill_chunk_size": 3},
    "scores returned": {"do_sample": False, "return_dict_in_generate": True, "output_scores": True},
}
ALONE = {
    "prompt lookup": {"do_sample": False, "prompt_lookup_num_tokens": 3},
    "assisted": {"do_sample": False, "assistant_model": "another"},
    "assisted, sampling": {"do_sample": True, "assistant_model": "another"},
}


def generated(model, prompts, mode, **more):
    mode = dict(mode)
    if "assistant_model" in mode:  # close to the model, so that some guesses are right
        mode["assistant_model"] = guesser = theirs()
        with torch.no_grad():
            guesser.lm_head.weight += 0.3 * torch.randn_like(guesser.lm_head.weight)
    torch.manual_seed(3)
    with record(model) as rec:
        out = model.generate(prompts, max_new_tokens=9, pad_token_id=0, **mode, **more)
    return rec.trace, out if isinstance(out, torch.Tensor) else out.sequences


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one text", "two texts"])
def test_a_generation_is_its_text(mode, prompts):
    model = theirs()
    trace, texts = generated(model, prompts, mode)
    held_to_a_plain_pass(trace, model, texts)


@pytest.mark.parametrize("mode", ALONE.values(), ids=ALONE)
def test_guesses_that_were_rejected_are_not_in_the_trace(mode):
    model = theirs()
    trace, texts = generated(model, PROMPTS[:1], mode)
    held_to_a_plain_pass(trace, model, texts)


@pytest.mark.parametrize("mode", [MODES["greedy"], MODES["no cache"]], ids=["cache", "no cache"])
def test_padding_on_the_left_is_masked(mode):
    model, mask = theirs(), torch.ones_like(PROMPTS)
    mask[0, :3] = 0
    prompts = PROMPTS * mask
    trace, texts = generated(model, prompts, mode, attention_mask=mask)
    whole = torch.cat([mask, torch.ones(2, texts.shape[1] - mask.shape[1], dtype=int)], dim=1)
    assert trace.layers[0].mask_T.tolist() == whole[:, :-1].bool().flatten().tolist()
    for layer in trace.layers:
        assert not layer.keep_N[~layer.mask_T[layer.token_N]].any()


@pytest.mark.parametrize(
    "mode",
    [
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 3, "do_sample": False, "use_cache": False},
        {"num_beams": 2, "do_sample": True},
        {"num_return_sequences": 2, "num_beams": 2},
    ],
    ids=str,
)
def test_beams_are_refused_in_a_sentence(mode):
    with pytest.raises(ValueError, match="other texts than it returned, as beam search does"):
        generated(theirs(), PROMPTS[:1], mode)


def test_several_samples_of_one_prompt_are_several_texts():
    model = theirs()
    trace, texts = generated(model, PROMPTS[:1], {"do_sample": True}, num_return_sequences=2)
    held_to_a_plain_pass(trace, model, texts)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_our_own_generation_is_its_text(temperature):
    torch.manual_seed(0)
    model = Mixtral(MixtralConfig(**SIZES))
    with record(model) as rec:
        texts = model.generate(PROMPTS, 9, temperature=temperature, seed=1)
    held_to_a_plain_pass(rec.trace, model, texts)


def test_two_generations_are_two_texts():
    model = theirs()
    with record(model) as rec:
        first, second = (
            model.generate(p[None], max_new_tokens=4, do_sample=False) for p in PROMPTS
        )
    want = [*first[0, :-1].tolist(), *second[0, :-1].tolist()]
    assert rec.trace.tokens == [str(i) for i in want]
    assert rec.trace.text_T.tolist() == [0] * 10 + [1] * 10


@pytest.mark.parametrize("given", [None, "one", "two"], ids=str)
@pytest.mark.parametrize("configured", [None, "one", "two"], ids=str)
def test_prompts_of_unequal_length_end_as_transformers_lets_them(given, configured, tmp_path):
    """The same tokens as transformers': padded on the left, until one of several ends."""
    reference = theirs()
    prompts = torch.tensor([[0, 0, 0, 5, 9, 5, 9], [3, 4, 7, 3, 4, 8, 3], [0, 5, 1, 2, 3, 4, 5]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7, [0] + [1] * 6])
    how = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    free = reference.generate(prompts, **how)
    one, other = int(free[0, 9]), int(free[1, 10])  # these will be drawn
    kinds = {None: None, "one": one, "two": [one, other]}
    reference.config.eos_token_id = reference.generation_config.eos_token_id = kinds[configured]
    reference.save_pretrained(tmp_path)
    more = {} if given is None else {"eos_token_id": kinds[given]}
    want = reference.generate(prompts, **how, **more)
    got = hf.load(tmp_path).generate(prompts, 12, temperature=0, mask_BS=mask, **more)
    ends = kinds[given or configured]
    ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
    assert got.shape == want.shape
    for mine, theirs_ in zip(got[:, 7:].tolist(), want[:, 7:].tolist(), strict=True):
        stop = next((n + 1 for n, i in enumerate(mine) if i in ends), len(mine))
        assert mine[:stop] == theirs_[:stop] and set(mine[stop:]) <= set(ends[:1])
    if ends:
        assert got[0, 9] == one and set(got[0, 10:].tolist()) <= {one}


def test_padding_on_the_right_is_refused():
    mask = torch.tensor([[1] * 7, [1] * 6 + [0]])
    with pytest.raises(ValueError, match="pad on the left"):
        Mixtral(MixtralConfig(**SIZES)).generate(PROMPTS, 3, mask_BS=mask)
