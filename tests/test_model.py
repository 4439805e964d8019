"""Chapters 4 to 6: the bigram, attention, positions and the GPT."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import counted_bigram, noisy_gpt, tiny_config

import gpt

POSITIONS = ("learned", "sinusoidal", "rotary")


def test_one_head_is_the_textbook_sum():
    torch.manual_seed(0)
    x, *matrices = torch.randn(2, 5, 6), *torch.randn(3, 6, 4)          # B=2, T=5, C=6, hs=4
    result = gpt.one_head(x, *matrices)
    assert result.shape == (2, 5, 4)
    for b in range(2):
        q, k, v = ([[sum(x[b, t, i].item() * w[i, j].item() for i in range(6)) for j in range(4)]
                    for t in range(5)] for w in matrices)
        for t in range(5):
            scores = [math.exp(sum(map(float.__mul__, q[t], k[s])) / 2) for s in range(t + 1)]
            for j in range(4):
                mean = sum(score * v[s][j] for s, score in enumerate(scores)) / sum(scores)
                assert result[b, t, j].item() == pytest.approx(mean, abs=1e-5)


def test_all_heads_at_once_are_the_heads_one_by_one():
    torch.manual_seed(0)
    attention = gpt.CausalSelfAttention(tiny_config(n_head=4, bias=False))
    x = torch.randn(3, 6, 16)
    wq, wk, wv = attention.qkv.weight.split(16)                         # (3C, C) -> three of (C, C)
    heads = []
    for h in range(4):
        own = slice(4 * h, 4 * h + 4)
        heads.append(gpt.one_head(x, wq[own].T, wk[own].T, wv[own].T))
    by_hand = attention.proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(x, torch.arange(6)), by_hand, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("position", POSITIONS)
def test_fused_attention_is_the_formula_written_out(position):
    torch.manual_seed(0)
    config = tiny_config(n_head=4, position=position, bias=True)
    attention, x, places = gpt.CausalSelfAttention(config), torch.randn(3, 6, 16), torch.arange(2, 8)
    heads = []
    for h in range(4):
        rows = [torch.arange(4 * h, 4 * h + 4) + 16 * part for part in range(3)]
        q, k, v = (F.linear(x, attention.qkv.weight[own], attention.qkv.bias[own]) for own in rows)
        if position == "rotary":
            q, k = gpt.rotate(q, places, config), gpt.rotate(k, places, config)
        scores = q @ k.mT / math.sqrt(4) + torch.full((6, 6), -math.inf).triu(1)
        heads.append(scores.softmax(-1) @ v)
    by_hand = attention.proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(x, places), by_hand, atol=1e-6, rtol=1e-5)


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
        for later in range(t, 8):                                       # and it changes all others
            assert not torch.allclose(other[:, later], logits[:, later])


@pytest.mark.parametrize("position", POSITIONS)
def test_the_order_of_the_tokens_matters(position):
    model = noisy_gpt(tiny_config(position=position))
    a, b = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[2, 1, 3, 4]])
    assert not torch.allclose(model(a)[0][0, -1], model(b)[0][0, -1], atol=1e-3)


def test_sinusoids_are_clocks_of_the_documented_speeds():
    table = gpt.sinusoids(tiny_config(block_size=64, n_embd=16))
    assert table.shape == (64, 16)
    slowest = 2 * math.pi / 640                                         # once round in ten contexts
    for place in (0, 1, 17, 63):
        for clock in range(8):
            angle = place * slowest ** (clock / 7)
            assert table[place, clock].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[place, 8 + clock].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_rotating_turns_each_pair_of_numbers_like_the_hand_of_its_clock():
    torch.manual_seed(0)
    config = tiny_config(block_size=32)
    x, places = torch.randn(2, 3, 5, 8), torch.tensor([0, 1, 9, 30, 31])
    angles = gpt.clock_angles(places, 4, config)
    turned = gpt.rotate(x, places, config)
    for t in range(5):
        for clock in range(4):
            assert angles[t, clock].item() == pytest.approx(
                places[t].item() * (2 * math.pi / 320) ** (clock / 3), rel=1e-5)
            before, after = (torch.complex(z[:, :, t, clock], z[:, :, t, 4 + clock])
                             for z in (x, turned))
            turn = torch.exp(1j * angles[t, clock])
            torch.testing.assert_close(after, before * turn, atol=1e-4, rtol=0)


def test_rotary_scores_depend_on_the_distance_alone():
    torch.manual_seed(0)
    config = tiny_config(block_size=32)
    q, k = torch.randn(2, 1, 8)

    def score(i, j):
        i, j = torch.tensor([i]), torch.tensor([j])
        return (gpt.rotate(q, i, config) * gpt.rotate(k, j, config)).sum().item()

    assert score(5, 2) == pytest.approx(score(31, 28), abs=1e-4)
    assert score(5, 2) != pytest.approx(score(5, 3), abs=1e-3)
    assert score(5, 2) != pytest.approx(score(2, 5), abs=1e-3)
    assert gpt.rotate(q, torch.tensor([9]), config).norm().item() == pytest.approx(q.norm().item())


def test_rotary_attention_is_the_same_wherever_the_text_stands():
    torch.manual_seed(0)
    attention = gpt.CausalSelfAttention(tiny_config(position="rotary", block_size=64))
    x, places = torch.randn(2, 8, 16), torch.arange(8)
    here = attention(x, places)
    torch.testing.assert_close(attention(x, places + 40), here, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(attention(x, 2 * places), here, atol=1e-3)


def test_learned_positions_start_as_sinusoids_and_only_they_are_trained():
    models = {position: gpt.GPT(tiny_config(position=position)) for position in POSITIONS}
    learned, frozen = (models[p].position_embedding.weight for p in ("learned", "sinusoidal"))
    assert torch.equal(learned, frozen)
    ratio = learned / gpt.sinusoids(tiny_config())
    assert torch.allclose(ratio[1:], ratio[1, 0].expand_as(ratio[1:]), rtol=1e-4)
    assert learned.requires_grad and not frozen.requires_grad
    counts = [gpt.count_parameters(models[position]) for position in POSITIONS]
    assert counts[0] - 8 * 16 == counts[1] == counts[2]


def test_parameter_count_is_that_of_the_formula():
    V, T, C, L = 65, 64, 128, 3
    block = 2 * 2 * C + (C * 3 * C + 3 * C) + (C * C + C) + (C * 4 * C + 4 * C) + (4 * C * C + C)
    assert gpt.count_parameters(gpt.GPT(gpt.Config())) == V * C + T * C + L * block + 2 * C + C * V


def gpt2(weights, idx, n_head):
    """GPT-2 (Radford et al. 2019) from plain operations, as in its paper and published weights."""

    def norm(x, name):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        x = (x - mean) / (variance + 1e-5).sqrt()
        return x * weights[name + ".weight"] + weights[name + ".bias"]

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
    by_hand = gpt2(model.state_dict(), idx, n_head=2)
    torch.testing.assert_close(model(idx)[0], by_hand, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("position", POSITIONS)
def test_tied_weights_are_one_table(position):
    free, tied = (gpt.GPT(tiny_config(tie_weights=tie, position=position)) for tie in (False, True))
    assert tied.lm_head.weight is tied.token_embedding.weight
    assert not torch.equal(free.lm_head.weight, free.token_embedding.weight)
    assert gpt.count_parameters(free) - gpt.count_parameters(tied) == 11 * 16


def first_loss(**settings):
    """The loss of a new GPT on random tokens, as a multiple of ln(V), what knowing nothing costs."""
    torch.manual_seed(0)
    config = gpt.Config(**settings)
    model, idx = gpt.GPT(config), torch.randint(config.vocab_size, (8, config.block_size + 1))
    return model(idx[:, :-1], idx[:, 1:])[1].item() / math.log(config.vocab_size)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("tie_weights", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_first_loss_is_near_that_of_knowing_nothing(position, tie_weights, bias):
    settings = dict(position=position, tie_weights=tie_weights, bias=bias)
    assert first_loss(**settings) == pytest.approx(1, abs=0.05)
    deep = dict(n_layer=6, n_embd=96, n_head=6, vocab_size=300, block_size=32)
    assert first_loss(**settings, **deep) == pytest.approx(1, abs=0.02)


def test_loss_is_the_mean_surprise_at_the_targets():
    model = noisy_gpt(tiny_config())
    x, y = torch.randint(11, (2, 3, 8))
    logits, loss = model(x, y)
    probs = logits.exp() / logits.exp().sum(-1, keepdim=True)
    surprises = [-math.log(probs[b, t, y[b, t]].item()) for b in range(3) for t in range(8)]
    assert loss.item() == pytest.approx(sum(surprises) / 24, abs=1e-4)
    assert logits.shape == (3, 8, 11) and model(x)[1] is None


@pytest.mark.parametrize("place, silent", [
    ("dropout", None), ("blocks.1.attention", None),
    ("blocks.1.dropout", "blocks.1.attention.proj"),            # so it works on the feed-forward
    ("blocks.1.dropout", "blocks.1.feed_forward.2"),            # so it works on the attention
])
@torch.no_grad()
def test_dropout_works_in_each_place_in_training_and_only_there(place, silent):
    model, idx = noisy_gpt(tiny_config(dropout=0.5)), torch.randint(11, (1, 8))
    if silent:                                                  # this half of the block adds nothing
        for parameter in model.get_submodule(silent).parameters():
            parameter.zero_()
    assert torch.equal(model(idx)[0], model(idx)[0])
    model.get_submodule(place).training = True                  # this place alone
    assert not torch.equal(model(idx)[0], model(idx)[0])


def test_more_tokens_than_the_context_are_refused():
    model, cache = gpt.GPT(tiny_config()), gpt.Cache()
    with pytest.raises(gpt.UserError, match="9 tokens .* block_size=8"):
        model(torch.zeros(1, 9, dtype=torch.int64))
    model(torch.zeros(1, 8, dtype=torch.int64), cache=cache)
    with pytest.raises(gpt.UserError, match="9 tokens .* block_size=8"):
        model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)


def test_a_filled_cache_takes_one_token_at_a_time():
    model, cache = gpt.GPT(tiny_config()), gpt.Cache()
    model(torch.zeros(1, 3, dtype=torch.int64), cache=cache)
    with pytest.raises(gpt.UserError, match="a filled cache takes one token at a time, not 2"):
        model(torch.zeros(1, 2, dtype=torch.int64), cache=cache)
    model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
    assert cache.length == 4


def test_the_bigram_starts_by_knowing_nothing():
    model = gpt.BigramLanguageModel(65)
    logits, loss = model(torch.randint(65, (4, 9)), torch.randint(65, (4, 9)))
    assert logits.shape == (4, 9, 65) and model(torch.randint(65, (4, 9)))[1] is None
    assert loss.item() == pytest.approx(math.log(65), abs=1e-5)


def test_no_bigram_has_a_lower_loss_than_the_shares_that_were_counted():
    tokens = torch.tensor([0, 1, 2, 0, 1, 0, 2, 0, 1])
    model = counted_bigram(tokens, 3)
    odds = F.softmax(model.table.weight, dim=-1)
    torch.testing.assert_close(odds, torch.tensor([[0, 3 / 4, 1 / 4], [1 / 2, 0, 1 / 2], [1, 0, 0]]))
    _, loss = model(tokens[None, :-1], tokens[None, 1:])
    by_hand = -(3 * math.log(3 / 4) + math.log(1 / 4) + 2 * math.log(1 / 2)) / 8
    assert loss.item() == pytest.approx(by_hand, abs=1e-6)
    loss.backward()
    torch.testing.assert_close(model.table.weight.grad, torch.zeros(3, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("settings, words", [
    ({"n_layer": 0}, "n_layer .* at least 1 .* 0"), ({"block_size": -3}, "block_size .* -3"),
    ({"n_embd": 1.5}, "n_embd .* int, not 1.5"), ({"n_embd": 130}, "n_embd .* n_head=4, not 130"),
    ({"position": "absolute"}, "position .* learned or sinusoidal or rotary, not 'absolute'"),
    ({"tokenizer": "word"}, "tokenizer .* char or bpe, not 'word'"),
    ({"tokenizer": "bpe", "vocab_size": 256}, "vocab_size .* at least 257 .* 256"),
    ({"position": "rotary", "n_embd": 12}, "pairs .*n_embd=12, n_head=4 .* 3$"),
    ({"n_head": 1, "n_embd": 33}, "pairs .*n_embd=33, n_head=1 .* 33$"),
    ({"dropout": 1.0}, "dropout .* below 1, not 1.0"), ({"dropout": math.nan}, "dropout .* nan"),
    ({"learning_rate": 0.0}, "learning_rate .* 0.0"), ({"seed": -1}, "seed .* at least 0 .* -1"),
    ({"learning_rate": math.inf}, "learning_rate .* inf"),
    ({"max_steps": 2**32}, "max_steps .* below 4294967296, not 4294967296"),
    ({"max_steps": "10"}, "max_steps .* int, not '10'"), ({"n_head": True}, "n_head .* int, not True"),
    ({"weight_decay": -0.1}, "weight_decay .* -0.1"), ({"bias": 1}, "bias .* bool, not 1"),
])
def test_a_setting_that_cannot_work_is_named(settings, words):
    with pytest.raises(gpt.UserError, match=words):
        gpt.Config(**settings)
    assert issubclass(gpt.UserError, ValueError)


@pytest.mark.parametrize("settings", [
    {"position": "learned"}, {"position": "sinusoidal"}, {"position": "rotary"},
    {"position": "learned", "bias": False}, {"position": "rotary", "tie_weights": True},
    {"position": "learned", "block_size": 256, "n_embd": 192},
])
def test_the_first_heads_begin_by_looking_back(settings):
    torch.manual_seed(0)
    config = gpt.Config(**settings)
    model = gpt.GPT(config).eval()
    T, nh, hs = config.block_size, config.n_head, config.n_embd // config.n_head
    attention, seen = model.blocks[0].attention, {}
    attention.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    model(torch.randint(65, (4, T)))
    q, k, _ = attention.qkv(seen["x"]).view(4, T, 3, nh, hs).permute(2, 0, 3, 1, 4)
    if config.position == "rotary":
        q, k = (gpt.rotate(z, torch.arange(T), config) for z in (q, k))
    scores = (q @ k.mT / hs**0.5).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
    shares = scores.softmax(-1).mean(0)                                 # (nh, T, T)
    for h in range(nh):
        by_distance = torch.stack([shares[h].diagonal(-distance).mean() for distance in range(T)])
        assert by_distance.argmax() == h + 1 and by_distance[h + 1] > 0.5
