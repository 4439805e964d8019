"""Chapter 8: from logits to probabilities, and from them to text."""

import pytest
import torch
from conftest import noisy_gpt, tiny_config

import gpt

ODDS = torch.tensor([[0.4, 0.1, 0.3, 0.2]])
PROMPT = torch.tensor([[3, 1, 4], [1, 5, 9]])


@pytest.mark.parametrize("dials, expected", [
    ({}, [0.4, 0.1, 0.3, 0.2]),
    ({"temperature": 0}, [1, 0, 0, 0]),
    ({"temperature": 0.5}, [0.16 / 0.3, 0.01 / 0.3, 0.09 / 0.3, 0.04 / 0.3]),       # odds squared
    ({"temperature": 1e-30}, [1, 0, 0, 0]),
    ({"top_k": 1}, [1, 0, 0, 0]),
    ({"top_k": 2}, [4 / 7, 0, 3 / 7, 0]),
    ({"top_k": 99}, [0.4, 0.1, 0.3, 0.2]),
    ({"top_p": 1.0}, [0.4, 0.1, 0.3, 0.2]),
    ({"top_p": 0.39}, [1, 0, 0, 0]),
    ({"top_p": 0.41}, [4 / 7, 0, 3 / 7, 0]),
    ({"top_p": 0.85}, [4 / 9, 0, 3 / 9, 2 / 9]),
    ({"top_p": 1e-9}, [1, 0, 0, 0]),
    ({"top_k": 3, "top_p": 0.75}, [4 / 7, 0, 3 / 7, 0]),       # of 9, 4 and 3 are more than 75%
    ({"temperature": 0.5, "top_k": 2}, [16 / 25, 0, 9 / 25, 0]),
])
def test_the_dials_do_what_they_say(dials, expected):
    for shift in (0.0, 300.0):                                  # the same odds, whatever is added
        result = gpt.next_token_probabilities(ODDS.log() + shift, **dials)
        torch.testing.assert_close(result, torch.tensor([expected], dtype=torch.float32), atol=1e-4, rtol=0)


def test_each_row_of_a_batch_has_its_own_odds():
    rows = torch.cat((ODDS, ODDS.flip(1)))
    result = gpt.next_token_probabilities(rows.log(), top_k=2)
    torch.testing.assert_close(result[1], result[0].flip(0))


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary"])
@pytest.mark.parametrize("block_size", [1, 2, 7, 8])
def test_the_cache_changes_nothing_at_any_length(position, block_size):
    model = noisy_gpt(tiny_config(position=position, block_size=block_size))
    for length in (1, 3, 20):
        prompt = torch.randint(11, (2, length))
        with_cache = gpt.generate(model, prompt, 40, temperature=0)
        without = gpt.generate(model, prompt, 40, temperature=0, use_cache=False)
        assert torch.equal(with_cache, without) and with_cache.shape == (2, length + 40)
        assert torch.equal(with_cache[:, :length], prompt)


def test_the_cache_gives_the_same_logits():
    for position in ("learned", "sinusoidal", "rotary"):
        model, idx, cache = noisy_gpt(tiny_config(position=position)), torch.randint(11, (2, 8)), {}
        together, _ = model(idx)
        one_by_one = [model(idx[:, :3], cache=cache)[0]] + [model(idx[:, t:t + 1], cache=cache)[0] for t in range(3, 8)]
        torch.testing.assert_close(torch.cat(one_by_one, dim=1), together, atol=1e-5, rtol=1e-5)


def test_greedy_takes_the_likeliest_token_of_the_documented_window():
    model = noisy_gpt(tiny_config())
    text = gpt.generate(model, PROMPT, 30, temperature=0)
    for length in range(3, 33):
        start = gpt.window_start(length, 8)
        logits, _ = model(text[:, start:length])
        assert torch.equal(logits[:, -1].argmax(-1), text[:, length])


def test_the_window_always_holds_half_the_context_or_more():
    for block_size in (1, 2, 3, 8, 64):
        for length in range(1, 400):
            start = gpt.window_start(length, block_size)
            assert length - start <= block_size
            assert length - start >= min(length, (block_size + 1) // 2)


def test_texts_follow_the_odds_of_the_model():
    counts = torch.tensor([[0.0, 3.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    model = gpt.BigramLanguageModel(3)
    model.table.weight.data = counts.log()
    text = gpt.generate(model, torch.zeros(1, 1, dtype=torch.int64), 4000,
                        generator=torch.Generator().manual_seed(0))[0]
    after_0 = text[1:][text[:-1] == 0]
    assert (after_0 == 1).float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert set(text[1:][text[:-1] > 0].tolist()) == {0}


def test_the_same_seed_writes_the_same_text():
    model = noisy_gpt(tiny_config())
    write = lambda seed: gpt.generate(model, PROMPT, 30, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(write(1), write(1)) and not torch.equal(write(1), write(2))


def test_writing_needs_no_gradients_uses_eval_mode_and_restores_the_mode():
    model = noisy_gpt(tiny_config(dropout=0.5)).train()
    first, second = (gpt.generate(model, PROMPT, 20, temperature=0) for _ in range(2))
    assert torch.equal(first, second) and model.training and not first.requires_grad
    tokens = gpt.stream_tokens(model, PROMPT, 3)
    next(tokens)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()    # a pause leaks no mode
    tokens.close()
    assert model.training


def test_what_was_written_can_be_trained_on():
    model = noisy_gpt(tiny_config())
    text = gpt.generate(model, PROMPT, 5)
    _, loss = model(text[:, :-1], text[:, 1:])
    loss.backward()
    assert model.token_embedding.weight.grad.abs().sum() > 0


def test_a_stream_is_generate_token_by_token():
    model = noisy_gpt(tiny_config())
    tokens = list(gpt.stream_tokens(model, PROMPT, 12, generator=torch.Generator().manual_seed(7)))
    text = gpt.generate(model, PROMPT, 12, generator=torch.Generator().manual_seed(7))
    assert torch.equal(torch.cat(tokens, dim=1), text[:, 3:])
    assert torch.equal(gpt.generate(model, PROMPT, 0), PROMPT)


@pytest.mark.parametrize("arguments, words", [
    ({"temperature": -1.0}, "temperature .* -1.0"), ({"temperature": float("nan")}, "temperature .* nan"),
    ({"temperature": float("inf")}, "temperature .* inf"), ({"top_k": 0}, "top_k .* 0"),
    ({"top_p": 0.0}, "top_p .* 0.0"), ({"top_p": 1.5}, "top_p .* 1.5"), ({"top_p": float("nan")}, "top_p .* nan"),
    ({"idx": torch.zeros(1, 0, dtype=torch.int64)}, r"at least one token, not .*\(1, 0\)"),
    ({"idx": torch.zeros(4, dtype=torch.int64)}, r"\(4,\)"), ({"idx": torch.zeros(1, 4)}, "float32"),
    ({"idx": torch.tensor([[0, 11]])}, "id 11; .* 0 to 10"), ({"idx": torch.tensor([[-1, 3]])}, "id -1"),
    ({"max_new_tokens": -1}, "-1"),
])
@pytest.mark.parametrize("model", [gpt.GPT(tiny_config()), gpt.BigramLanguageModel(11)])
def test_values_that_make_no_sense_are_named(model, arguments, words):
    with pytest.raises(ValueError, match=words):
        gpt.generate(model, **{"idx": PROMPT, "max_new_tokens": 5, **arguments})
