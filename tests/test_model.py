"""Chapters 4 to 6: the bigram, attention, positions and the GPT."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import noisy_gpt, tiny_config

import gpt

POSITIONS = ("learned", "sinusoidal", "rotary")


def test_attention_written_out_is_the_textbook_sum():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 5, 4)                                  # three of (T=5, hs=4)
    result = gpt.attend(q, k, v)
    for t in range(5):
        scores = [math.exp(sum(a * b for a, b in zip(q[t].tolist(), k[s].tolist())) / 2) for s in range(t + 1)]
        for c in range(4):
            mean = sum(score * v[s, c].item() for s, score in enumerate(scores)) / sum(scores)
            assert result[t, c].item() == pytest.approx(mean, abs=1e-5)


def test_all_heads_at_once_are_the_heads_one_by_one():
    torch.manual_seed(0)
    attention = gpt.CausalSelfAttention(tiny_config(n_head=4))
    x = torch.randn(3, 6, 16)
    wq, wk, wv = attention.qkv.weight.split(16)                     # (3C, C) -> three of (C, C)
    bq, bk, bv = attention.qkv.bias.split(16)
    heads = []
    for h in range(4):
        own = slice(4 * h, 4 * h + 4)
        heads.append(gpt.attend(F.linear(x, wq[own], bq[own]), F.linear(x, wk[own], bk[own]),
                                F.linear(x, wv[own], bv[own])))
    by_hand = attention.proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(x), by_hand, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("position", POSITIONS)
def test_a_later_token_never_changes_an_earlier_logit(position):
    model = noisy_gpt(tiny_config(position=position))
    idx = torch.randint(11, (2, 8))
    logits, _ = model(idx)
    for t in range(8):
        changed = idx.clone()
        changed[:, t] = (changed[:, t] + 1) % 11
        other, _ = model(changed)
        assert torch.equal(other[:, :t], logits[:, :t])
        assert not torch.allclose(other[:, t:], logits[:, t:])      # and it does change later ones


@pytest.mark.parametrize("position", POSITIONS)
def test_the_order_of_the_tokens_matters(position):
    model = noisy_gpt(tiny_config(position=position))
    a, b = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[2, 1, 3, 4]])
    assert not torch.allclose(model(a)[0][0, -1], model(b)[0][0, -1], atol=1e-3)


def test_sinusoids_are_clocks_of_the_documented_speeds():
    table = gpt.sinusoids(64, 16)
    slowest = 2 * math.pi / 640
    for place in (0, 1, 17, 63):
        for clock in range(8):
            angle = place * slowest ** (clock / 7)
            assert table[place, clock].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[place, 8 + clock].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_rotary_scores_depend_on_the_distance_alone():
    torch.manual_seed(0)
    angles = gpt.clock_angles(32, 4)
    q, k = torch.randn(2, 1, 1, 1, 8)
    score = lambda i, j: (gpt.rotate(q, angles[i:i + 1]) * gpt.rotate(k, angles[j:j + 1])).sum().item()
    assert score(5, 2) == pytest.approx(score(31, 28), abs=1e-4)
    assert score(5, 2) != pytest.approx(score(5, 3), abs=1e-3)
    assert gpt.rotate(q, angles[9:10]).norm().item() == pytest.approx(q.norm().item(), rel=1e-5)


def test_learned_positions_start_as_sinusoids_and_only_they_are_trained():
    models = {position: gpt.GPT(tiny_config(position=position)) for position in POSITIONS}
    learned, frozen = (models[p].position_embedding.weight for p in ("learned", "sinusoidal"))
    assert torch.equal(learned, frozen)
    ratio = learned / gpt.sinusoids(8, 16)
    assert torch.allclose(ratio[1:], ratio[1, 0].expand_as(ratio[1:]), rtol=1e-4)
    assert learned.requires_grad and not frozen.requires_grad
    counts = [gpt.count_parameters(models[position]) for position in POSITIONS]
    assert counts[0] - 8 * 16 == counts[1] == counts[2]


def test_parameter_count_is_that_of_the_formula():
    V, T, C, L = 65, 64, 128, 3
    block = 2 * 2 * C + (C * 3 * C + 3 * C) + (C * C + C) + (C * 4 * C + 4 * C) + (4 * C * C + C)
    assert gpt.count_parameters(gpt.GPT(gpt.Config())) == V * C + T * C + L * block + 2 * C + C * V


def gpt2(weights, idx, n_head):
    """GPT-2 (Radford et al. 2019) from plain operations, as its paper and published weights have it."""

    def norm(x, name):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * weights[name + ".weight"] + weights[name + ".bias"]

    def linear(x, name):
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]

    T = idx.shape[1]
    x = weights["token_embedding.weight"][idx] + weights["position_embedding.weight"][:T]
    for layer in range(2):
        block = f"blocks.{layer}."
        q, k, v = linear(norm(x, block + "norm_1"), block + "attention.qkv").chunk(3, dim=-1)
        outputs = []
        for qh, kh, vh in zip(q.chunk(n_head, -1), k.chunk(n_head, -1), v.chunk(n_head, -1)):
            scores = qh @ kh.mT / math.sqrt(qh.shape[-1]) + torch.full((T, T), -1e9).triu(1)
            scores = (scores - scores.amax(-1, keepdim=True)).exp()
            scores = scores / scores.sum(-1, keepdim=True)
            outputs.append(scores @ vh)
        x = x + linear(torch.cat(outputs, -1), block + "attention.proj")
        h = linear(norm(x, block + "norm_2"), block + "feed_forward.0")
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + linear(h, block + "feed_forward.2")
    return norm(x, "norm") @ weights["token_embedding.weight"].T


def test_gpt_computes_what_gpt2_computes():
    model = noisy_gpt(tiny_config(bias=True, position="learned", tie_weights=True))
    idx = torch.randint(11, (3, 8))
    torch.testing.assert_close(model(idx)[0], gpt2(model.state_dict(), idx, n_head=2), atol=1e-4, rtol=1e-4)


def test_tied_weights_are_one_table():
    free, tied = (gpt.GPT(tiny_config(tie_weights=tie)) for tie in (False, True))
    assert tied.lm_head.weight is tied.token_embedding.weight
    assert gpt.count_parameters(free) - gpt.count_parameters(tied) == 11 * 16


@pytest.mark.parametrize("settings", [{}, {"position": "rotary"}, {"tie_weights": True}, {"bias": False},
                                      {"n_layer": 6, "n_embd": 96, "n_head": 6}])
def test_loss_starts_near_that_of_knowing_nothing(settings):
    torch.manual_seed(0)
    model = gpt.GPT(gpt.Config(**settings))
    idx = torch.randint(65, (8, 65))
    _, loss = model(idx[:, :-1], idx[:, 1:])
    assert loss.item() == pytest.approx(math.log(65), abs=0.1)


def test_loss_is_the_mean_surprise_at_the_targets():
    model = noisy_gpt(tiny_config())
    x, y = torch.randint(11, (2, 3, 8))
    logits, loss = model(x, y)
    probs = logits.exp() / logits.exp().sum(-1, keepdim=True)
    surprises = [-math.log(probs[b, t, y[b, t]].item()) for b in range(3) for t in range(8)]
    assert loss.item() == pytest.approx(sum(surprises) / 24, abs=1e-4)
    assert logits.shape == (3, 8, 11) and model(x)[1] is None


def test_dropout_works_in_training_and_only_there():
    model = noisy_gpt(tiny_config(dropout=0.5))
    idx = torch.randint(11, (1, 8))
    assert torch.equal(model(idx)[0], model(idx)[0])
    model.train()
    assert not torch.equal(model(idx)[0], model(idx)[0])


def test_more_tokens_than_the_context_are_refused():
    with pytest.raises(ValueError, match="9 tokens .* block_size=8"):
        gpt.GPT(tiny_config())(torch.zeros(1, 9, dtype=torch.int64))


def test_a_filled_cache_takes_one_token_at_a_time():
    model, cache = gpt.GPT(tiny_config()), {}
    model(torch.zeros(1, 3, dtype=torch.int64), cache=cache)
    with pytest.raises(ValueError, match="one token at a time, not 2"):
        model(torch.zeros(1, 2, dtype=torch.int64), cache=cache)


def test_counting_gives_the_shares_of_what_was_counted():
    tokens = torch.tensor([0, 1, 2, 0, 1, 0, 2, 0, 1])
    model = gpt.bigram_from_counts(tokens, 3)
    odds = F.softmax(model.table.weight, dim=-1)
    torch.testing.assert_close(odds, torch.tensor([[0, 3 / 4, 1 / 4], [1 / 2, 0, 1 / 2], [1, 0, 0]]))


def test_the_bigram_starts_by_knowing_nothing():
    model = gpt.BigramLanguageModel(65)
    logits, loss = model(torch.randint(65, (4, 9)), torch.randint(65, (4, 9)))
    assert logits.shape == (4, 9, 65)
    assert loss.item() == pytest.approx(math.log(65), abs=1e-5)


@pytest.mark.parametrize("settings, words", [
    ({"n_layer": 0}, "n_layer .* 0"), ({"block_size": -3}, "block_size .* -3"), ({"n_embd": 1.5}, "n_embd .* 1.5"),
    ({"n_embd": 130}, "n_head=4, not 130"), ({"position": "absolute"}, "'absolute'"),
    ({"position": "rotary", "n_embd": 12}, "even .* not 3"), ({"n_head": 1, "n_embd": 33}, "even .* not 33"),
    ({"dropout": 1.0}, "dropout .* 1.0"), ({"dropout": math.nan}, "dropout .* nan"),
    ({"learning_rate": 0.0}, "learning_rate .* 0.0"), ({"learning_rate": math.inf}, "learning_rate .* inf"),
    ({"seed": -1}, "seed .* -1"), ({"max_steps": "10"}, "max_steps .* '10'"), ({"n_head": True}, "n_head .* True"),
    ({"weight_decay": -0.1}, "weight_decay .* -0.1"), ({"bias": 1}, "bias .* 1"),
])
def test_a_setting_that_cannot_work_is_named(settings, words):
    with pytest.raises(ValueError, match=words):
        gpt.Config(**settings)


@pytest.mark.parametrize("position", POSITIONS)
def test_the_first_heads_begin_by_looking_back(position):
    torch.manual_seed(0)
    model = gpt.GPT(gpt.Config(position=position)).eval()
    T, nh, hs = 64, 4, 32
    seen = {}
    model.blocks[0].attention.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    model(torch.randint(65, (4, T)))
    q, k, _ = model.blocks[0].attention.qkv(seen["x"]).view(4, T, 3, nh, hs).permute(2, 0, 3, 1, 4)
    if position == "rotary":
        q, k = gpt.rotate(q, model.angles), gpt.rotate(k, model.angles)
    scores = (q @ k.mT / hs**0.5).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
    weights = scores.softmax(-1).mean(0)                                # (nh, T, T)
    for h in range(nh):
        by_distance = torch.stack([weights[h].diagonal(-distance).mean() for distance in range(T)])
        assert by_distance.argmax() == h + 1 and by_distance[h + 1] > 0.5
