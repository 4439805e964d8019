"""attention_toy.py: the four versions, the pictures, the ladder, a model's heads, the program."""

import math
import re
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TEXT, counted_bigram, noisy_gpt, tiny_config

import attention_toy as toy
import gpt

AVERAGES = (toy.average_by_loop, toy.average_by_matrix, toy.average_by_softmax)
CELLS = re.compile("^[ ░▒▓█]*$")


def version_4(x):
    torch.manual_seed(1)
    return toy.self_attention(x, *torch.randn(3, x.shape[2], 4))


def four_heads(x):
    torch.manual_seed(1)
    return toy.several_heads(x, *torch.randn(3, x.shape[2], x.shape[2]), n_head=3)


VERSIONS = (*AVERAGES, version_4, four_heads)


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(3, 7, 6)                                     # (B, T, C)


# The four versions


@pytest.mark.parametrize("version", AVERAGES)
def test_an_average_is_the_mean_of_the_past_and_the_token_itself(version):
    x = torch.tensor([[[6.0, 0.0], [2.0, 4.0], [1.0, 8.0]], [[0.0, 0.0], [1.0, -1.0], [5.0, 1.0]]])
    expected = torch.tensor([[[6.0, 0.0], [4.0, 2.0], [3.0, 4.0]],
                             [[0.0, 0.0], [0.5, -0.5], [2.0, 0.0]]])
    torch.testing.assert_close(version(x), expected)


def test_versions_1_to_3_are_the_same_numbers(x):
    first, *others = (version(x) for version in AVERAGES)
    for other in others:
        torch.testing.assert_close(other, first, atol=1e-6, rtol=1e-5)


def test_version_4_is_the_fused_function_and_the_plain_form_of_gpt(x):
    for hs in (1, 4, 64):
        w_query, w_key, w_value = torch.randn(3, 6, hs) / 3
        result = toy.self_attention(x, w_query, w_key, w_value)
        fused = F.scaled_dot_product_attention(x @ w_query, x @ w_key, x @ w_value, is_causal=True)
        torch.testing.assert_close(result, fused, atol=2e-6, rtol=1e-5)
        plain = gpt.one_head(x, w_query, w_key, w_value)
        torch.testing.assert_close(result, plain, atol=2e-6, rtol=1e-5)


def test_version_4_by_hand():
    """Two tokens, scores ln(3) * sqrt(hs) / sqrt(hs) and 0, so weights 3/4 and 1/4."""
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    w_query = torch.tensor([[0.0, 0.0], [math.log(3) * math.sqrt(2), 0.0]])
    w_key = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    weights = toy.attention_weights(x @ w_query, x @ w_key)
    torch.testing.assert_close(weights, torch.tensor([[[1.0, 0.0], [0.75, 0.25]]]))
    result = toy.self_attention(x, w_query, w_key, w_value=torch.tensor([[8.0, 0.0], [0.0, 4.0]]))
    torch.testing.assert_close(result, torch.tensor([[[8.0, 0.0], [6.0, 1.0]]]))


def test_version_4_with_queries_of_zero_is_version_3(x):
    result = toy.self_attention(x, torch.zeros(6, 6), torch.randn(6, 6), torch.eye(6))
    torch.testing.assert_close(result, toy.average_by_softmax(x))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_later_token_never_changes_an_earlier_result(version, x):
    before = version(x)
    for t in range(x.shape[1]):
        changed = x.clone()
        changed[:, t] += 1
        after = version(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.isclose(after[:, t], before[:, t]).all(dim=-1).any()   # but its own, yes


@pytest.mark.parametrize("weights", [
    *(toy.weights_behind(version, 7) for version in AVERAGES),
    toy.attention_weights(torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 4))])
def test_weights_are_shares_of_the_past(weights):
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    assert (weights >= 0).all() and (weights.triu(diagonal=1) == 0).all()
    assert (weights.diagonal(dim1=-2, dim2=-1) > 0).all()


@pytest.mark.parametrize("version", AVERAGES)
def test_the_weights_behind_an_average_are_those_that_it_gathers_with(version, x):
    torch.testing.assert_close(toy.weights_behind(version, 7) @ x, version(x))


def test_hand_made_weights_find_what_the_text_says():
    """r in "to be or" finds o, e and o, the places 15, 5 and 15; b the o; e and o the spaces."""
    result = toy.self_attention(toy.example(), *toy.hand_made_weights())[0]
    assert result[7].tolist() == pytest.approx([35 / 3, 1], abs=0.05)
    assert result[3].tolist() == pytest.approx([15, 1], abs=0.05)
    for vowel in (4, 6):
        assert result[vowel].tolist() == pytest.approx([27, 0], abs=0.1)
    assert result[2].tolist() == pytest.approx([62 / 3, 1 / 3], abs=1e-4)       # a space


# Several heads


@pytest.mark.parametrize("n_head", [1, 2, 8])
def test_several_heads_joined_are_the_class_of_gpt(n_head):
    torch.manual_seed(0)
    attention = gpt.CausalSelfAttention(tiny_config(n_head=n_head, bias=False))
    x, matrices = torch.randn(3, 7, 16), attention.qkv.weight.T.chunk(3, dim=1)
    found = toy.several_heads(x, *matrices, n_head)
    torch.testing.assert_close(attention.proj(found), attention(x, torch.arange(7)),
                               atol=1e-6, rtol=1e-5)
    one_by_one = [toy.self_attention(x, *head) for head in
                  zip(*(matrix.chunk(n_head, dim=1) for matrix in matrices))]
    torch.testing.assert_close(found, torch.cat(one_by_one, dim=-1), atol=1e-6, rtol=1e-5)


def test_one_head_cannot_subtract_whatever_its_weights_values_and_matrix(capsys):
    """The best of what is tried, random or fitted, is off by 7.5 or more, as the file says."""
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    pasts = torch.tensor([[0, 0], [1, 1], [0, 1], [1, 0]])          # which of the two numbers
    wanted = torch.tensor([0.0, 0.0, 15.0, -15.0], dtype=torch.float64)
    for width in (1, 2, 8):
        for _ in range(200):
            values = random(2, width)[pasts]                        # (4, 2 tokens, width)
            weights = (3 * random(4, 2)).softmax(dim=1)             # each past has its own
            received = (weights[:, :, None] * values).sum(dim=1)    # (4, width)
            inputs = torch.cat((received, torch.ones(4, 1)), dim=1)
            fitted = torch.linalg.pinv(inputs, rtol=1e-9) @ wanted
            for readout in (fitted, 20 * random(width + 1)):
                assert (inputs @ readout - wanted).abs().max() > 7.5 - 1e-6
    toy.why_several_heads()
    out = capsys.readouterr().out
    rows = [list(map(float, line.split()[-4:])) for line in out.split("\n") if " head" in line[:9]]
    assert rows[0] == wanted.tolist() and len(rows) == 4            # two heads, exactly
    for row in rows[1:]:
        assert max(abs(a - b) for a, b in zip(row, wanted.tolist())) >= 7.5


# The pictures


def test_a_picture_has_two_columns_for_each_token():
    weights = torch.ones(5, 5).tril() / torch.arange(1, 6)[:, None]
    head, *rows = toy.picture(weights, "a\n \\b").split("\n")
    assert head == "    a ↵ ␣ \\ b"
    assert [row[:4] for row in rows] == ["a   ", "↵   ", "␣   ", "\\   ", "b   "]
    assert [row[4:] for row in rows] == ["██", "▓▓▓▓", "▒▒▒▒▒▒", "▒▒▒▒▒▒▒▒", "▒▒▒▒▒▒▒▒▒▒"]


def test_a_darker_cell_is_a_larger_weight():
    pictures = [toy.picture(torch.tensor([[w / 100]]), "a") for w in range(101)]
    shades = [picture.split("\n")[1][4:] or "  " for picture in pictures]
    assert shades == sorted(shades, key="  ░░▒▒▓▓██".index)
    assert set(shades) == {"  ", "░░", "▒▒", "▓▓", "██"}
    assert shades[0] == "  " and shades[100] == "██"


def test_a_picture_of_pieces_of_words():
    weights = torch.ones(4, 4).tril() / torch.arange(1, 5)[:, None]
    head, *rows = toy.picture(weights, [" the", "\n", "中文 characters", "?"]).split("\n")
    assert head == " " * 10 + "␣t↵ 中?"                       # 中 fills two columns
    assert [row.split("█")[0].split("▓")[0].split("▒")[0] for row in rows] == [
        "␣the      ", "↵         ", "中文␣cha  ", "?         "]       # 8 columns and 2


@pytest.mark.parametrize("text", ["", "a", "abc", "\n\n", "中", "a中", " 中文\n", "\x1b\u0301"])
@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_a_cell_has_its_width(text, width):
    cell = toy.cell(text, width)
    assert sum(2 if c in "中文" else 1 for c in cell) == width and cell.isprintable()


def test_words_for_heads_whose_answer_is_known():
    itself, T = torch.eye(6), 6
    assert toy.in_words(itself) == ("looks 0.0 back on average; "
                                    "0% to the previous token, 0% to the first")
    previous = torch.eye(T).roll(-1, dims=1)
    previous[0] = itself[0]
    assert toy.in_words(previous) == ("looks 1.0 back on average; "
                                      "100% to the previous token, 20% to the first")
    first = torch.zeros(T, T)
    first[:, 0] = 1
    assert toy.in_words(first) == ("looks 3.0 back on average; "
                                   "20% to the previous token, 100% to the first")


# The ladder

SMALL = dict(vocab_size=11, block_size=8, n_embd=16, n_head=4, n_layer=3, batch_size=4,
             max_steps=6, eval_interval=6, warmup_steps=2)
BUILT = list(toy.ROWS)[2:]                                          # all but what is counted


def small(**settings):
    return gpt.Config(**{**SMALL, **settings})


def test_the_last_row_is_the_gpt_of_gpt_parameter_for_parameter():
    config = small()
    model = toy.build("+ head start", config)
    torch.manual_seed(config.seed)
    true = gpt.GPT(config)
    assert type(model) is gpt.GPT and model.config == config
    assert list(model.state_dict()) == list(true.state_dict())
    for name, weight in true.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


def test_with_layernorm_it_computes_what_gpt_computes():
    """All parts are there, and in their place; only the first weights are others."""
    config = small()
    model, true = toy.build("+ LayerNorm", config), noisy_gpt(config)
    model.load_state_dict(true.state_dict())
    idx = torch.randint(11, (2, 8))
    assert torch.equal(model.eval()(idx)[0], true(idx)[0])


def test_each_row_adds_the_parameters_of_its_part_and_no_others():
    V, T, C, layers = 11, 8, 16, 3
    matrix, block = C * C + C, 4 * (C * C + C) + 8 * C * C + 5 * C
    added = {"bigram": 2 * V * C, "average of the past": matrix,
             "one head, no positions": 2 * matrix, "+ positions": T * C, "four heads": 0,
             "+ joining matrix": matrix, "+ feed-forward": 8 * C * C + 5 * C,
             "three such blocks": (layers - 1) * block,
             "+ residuals": 0, "+ LayerNorm": (2 * layers + 1) * 2 * C, "+ head start": 0}
    counts = [gpt.count_parameters(toy.build(row, small())) for row in added]
    assert [b - a for a, b in zip([0, *counts], counts)] == list(added.values())
    wide = gpt.count_parameters(toy.build("control: wide bigram", small()))
    assert wide == 16 * added["bigram"]


@pytest.mark.parametrize("row", BUILT)
def test_each_model_of_the_ladder_is_causal_and_keeps_the_contract(row):
    model, idx = toy.build(row, small()), torch.randint(11, (4, 8))
    logits, loss = model(idx, idx)
    assert (model.block_size, model.vocab_size, logits.shape) == (8, 11, (4, 8, 11))
    torch.testing.assert_close(loss, F.cross_entropy(logits.view(-1, 11), idx.view(-1)))
    assert model(idx)[1] is None
    changed = idx.clone()
    changed[:, 5:] = (idx[:, 5:] + 1) % 11
    after = model(changed)[0]
    torch.testing.assert_close(after[:, :5], logits[:, :5], atol=1e-6, rtol=1e-5)
    assert row == "+ head start" or not torch.allclose(after[:, 5:], logits[:, 5:], atol=1e-3)


@pytest.mark.parametrize("row", BUILT)
def test_each_part_of_the_ladder_does_what_its_row_says(row):
    """What can the last token know of others? And does their order matter?"""
    torch.manual_seed(0)
    model, idx = toy.build(row, small()), torch.randint(11, (4, 8))
    with torch.no_grad():
        for parameter in model.parameters():                # a head start is silent at first
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    last = lambda idx: model(idx)[0][:, -1]
    others, shuffled = (idx + 1) % 11, idx[:, [3, 0, 6, 2, 5, 1, 4, 7]]
    others[:, -1] = idx[:, -1]
    bigram, blind = "bigram" in row, row in ("average of the past", "one head, no positions")
    assert torch.allclose(last(others), last(idx), atol=1e-5) == bigram
    assert torch.allclose(last(shuffled), last(idx), atol=1e-5) == (bigram or blind)


def test_one_head_is_version_4_and_four_heads_are_chapter_7():
    for row, n_head in (("+ positions", 1), ("four heads", 4)):
        model, idx = toy.build(row, small(bias=False)), torch.randint(11, (2, 8))
        x = model.token_embedding(idx) + model.position_embedding.weight    # (B, T, C)
        matrices = model.blocks[0].attention.qkv.weight.T.chunk(3, dim=1)
        by_hand = model.lm_head(toy.several_heads(x, *matrices, n_head))
        torch.testing.assert_close(model(idx)[0], by_hand, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("row", [row for row in BUILT if row != "+ head start"])
def test_what_passes_through_the_first_weights_keeps_its_size(row):
    """gpt.py's own would have zeros, through which a block without residuals lets nothing."""
    model = toy.build(row, small(n_embd=128))
    assert model.token_embedding.weight.std().item() == pytest.approx(1, abs=0.1)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            size = module.weight.std() * math.sqrt(module.in_features)
            assert size.item() == pytest.approx(1, abs=0.1)
            assert module.bias is None or not module.bias.any()


def test_only_some_rows_have_residuals():
    """Silence both halves of each block: where they add, x still comes through."""
    for row in list(toy.ROWS)[3:13]:
        model = toy.build(row, small())
        x = torch.randn(2, 8, 16)
        for block in model.blocks:
            for part in (block.attention, block.feed_forward):
                part.forward = lambda x, *_: 0 * x
        y = x
        for block in model.blocks:
            y = block(y, torch.arange(8))
        adds = row in ("+ residuals", "+ LayerNorm", "+ head start")
        assert torch.equal(y, x if adds else torch.zeros_like(x)), row


def test_uniform_costs_ln_v_and_frequencies_their_cross_entropy():
    torch.manual_seed(0)
    data = torch.multinomial(torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0]), 4000, replacement=True)
    train_data, val_data, config = data[:3000], data[3000:], small(vocab_size=5)
    _, parameters, loss = toy.climb("uniform", train_data, val_data, config)
    assert (parameters, loss) == (0, pytest.approx(math.log(5)))
    _, parameters, loss = toy.climb("frequencies alone", train_data, val_data, config)
    shares = (torch.bincount(train_data) + 1) / (len(train_data) + 5)
    true = -(torch.bincount(val_data[1:]) * shares.log()).sum() / (len(val_data) - 1)
    assert (parameters, loss) == (5, pytest.approx(true.item(), abs=1e-5))
    assert loss == pytest.approx(1.875 * math.log(2), abs=0.05)     # the entropy of 8 4 2 1 1


def test_the_bigram_comes_near_the_counted_optimum_and_a_wide_one_no_further():
    torch.manual_seed(0)
    follow, tokens = torch.rand(6, 6) ** 4, [0]                     # how likely j is after i
    for _ in range(6000):
        tokens.append(torch.multinomial(follow[tokens[-1]], 1).item())
    train_data, val_data = gpt.split(torch.tensor(tokens))
    config = small(vocab_size=6, max_steps=300, eval_interval=300, learning_rate=2e-2,
                   batch_size=32)
    best = gpt.evaluate(counted_bigram(train_data, 6), val_data)
    for row in ("bigram", "control: wide bigram"):
        model, _, loss = toy.climb(row, train_data, val_data, config)
        assert loss == pytest.approx(best, abs=0.03)
        assert loss == pytest.approx(gpt.evaluate(model, val_data), abs=1e-5)


def test_each_version_is_worth_what_the_file_says():
    """Here the answer is the token two places back: attention can find it, an average cannot."""
    torch.manual_seed(0)
    data = torch.randint(5, (400, 2)).repeat(1, 4).flatten()        # each pair, four times
    config = small(vocab_size=5, n_embd=32, max_steps=300, eval_interval=300, batch_size=32,
                   learning_rate=1e-2, seed=1)
    rows = ("bigram", "average of the past", "+ positions", "four heads")
    losses = {row: toy.climb(row, data[:2400], data[2400:], config)[2] for row in rows}
    for attention in rows[2:]:
        for blind in rows[:2]:
            assert losses[attention] < losses[blind] - 0.1


def test_the_ladder_prints_the_means_and_the_gains(monkeypatch, capsys):
    """With losses that are given: those of row number r with seed s are 4 - r / 10 + s."""
    rows = list(toy.ROWS)

    def climb(row, train_data, val_data, config):
        return gpt.BigramLanguageModel(11), 1000, 4 - rows.index(row) / 10 + config.seed

    monkeypatch.setattr(toy, "climb", climb)
    tokenizer = gpt.CharTokenizer("\nabcdefgh 中")
    losses, models = toy.show_ladder(rows, None, None, tokenizer, small(seed=2), seeds=3)
    out = capsys.readouterr().out
    assert is_plain(out) and list(losses) == list(models) == rows
    assert list(losses.values()) == pytest.approx([7 - r / 10 for r in range(len(rows))])
    lines = out.split("\n\n")[-1].strip().split("\n")[1:]            # without the titles
    assert len(lines) == 3 * len(rows)
    for row, (line, about, text) in zip(rows, zip(lines[::3], lines[1::3], lines[2::3])):
        numbers = line.removeprefix(row).split()
        above = {"control: wide bigram": "bigram", "control: wide block": "+ feed-forward"}.get(
            row, rows[max(0, rows.index(row) - 1)])
        assert numbers == ["1,000", f"{losses[row]:.4f}", "1.0000", f"{math.exp(losses[row]):.2f}",
                           f"{losses[above] - losses[row]:+.4f}"]
        assert about.strip() == toy.ROWS[row] and re.fullmatch("    >.{1,73}", text)


def test_with_one_seed_there_is_no_spread(monkeypatch, capsys):
    monkeypatch.setattr(toy, "climb", lambda *_: (gpt.BigramLanguageModel(3), 7, 1.0))
    toy.show_ladder(["uniform"], None, None, gpt.CharTokenizer("\nab"), small())
    assert re.search(r"^uniform +7 +1\.0000 +- +2\.72 +\+0\.0000$", capsys.readouterr().out, re.M)


def test_findings_name_the_largest_gains_and_what_lost():
    losses = dict(zip(toy.ROWS, [4.2, 3.3, 2.5, 3.2, 2.6, 2.4, 2.2, 2.19, 2.0, 2.1, 1.8, 1.9, 1.1,
                                 2.49, 1.7]))
    found = " ".join(toy.findings(losses).split())
    assert "largest gains: one head, no positions (+0.60) and + residuals (+0.30)." in found
    assert ("lose: average of the past (-0.70), three such blocks (-0.10), + LayerNorm (-0.10)."
            in found)
    assert "come to 2.49 (wide bigram) and 1.70 (wide block), and the GPT to 1.10." in found
    falling = {row: 4.2 - i / 10 for i, row in enumerate(toy.FIRST_ROWS)}
    assert toy.findings(falling).count(".") == 3 and "lose" not in toy.findings(falling)


def test_a_mean_over_seeds_is_the_mean_of_runs_with_each(monkeypatch, capsys):
    data, tokenizer = torch.randint(11, (400,)), gpt.CharTokenizer("\nabcdefghij")
    show = lambda seed, seeds: toy.show_ladder(["bigram", "four heads"], data, data[:50], tokenizer,
                                               small(seed=seed), seeds)[0]
    monkeypatch.setattr(toy, "gain", lambda row, losses: 0.0)       # rows are missing here
    alone, both = [show(1, 1), show(2, 1)], show(1, 2)
    for row in both:
        assert both[row] == pytest.approx((alone[0][row] + alone[1][row]) / 2)
        assert alone[0][row] != alone[1][row]


# A model's attention


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary"])
def test_the_weights_of_a_model_are_those_it_computes_with(position):
    model = noisy_gpt(tiny_config(position=position, n_head=2))
    idx = torch.randint(11, (3, 7))
    caught = []
    catch = lambda module, inputs, output: caught.append((inputs[0], output))
    hooks = [block.attention.register_forward_hook(catch) for block in model.blocks]
    model(idx)
    for hook in hooks:
        hook.remove()
    layers = toy.weights_of_all_heads(model, idx)
    assert len(layers) == len(model.blocks) == len(caught)
    for block, weights, (x, output) in zip(model.blocks, layers, caught):
        assert weights.shape == (3, 2, 7, 7)
        v = block.attention.qkv(x)[..., 32:]                        # (3, 7, 48) -> (3, 7, 16)
        v = v.view(3, 7, 2, 8).transpose(1, 2)                      # (3, 7, 16) -> (3, 2, 7, 8)
        result = block.attention.proj((weights @ v).transpose(1, 2).reshape(3, 7, 16))
        torch.testing.assert_close(result, output, atol=1e-5, rtol=1e-4)


def test_looking_and_taking_the_mask_off_leave_pytorch_as_it_was(capsys):
    model, attention = noisy_gpt(tiny_config()), F.scaled_dot_product_attention
    idx = torch.randint(11, (1, 5))
    before = model(idx)[0]
    toy.weights_of_all_heads(model, idx)
    with pytest.raises(gpt.UserError):
        toy.weights_of_all_heads(model, torch.randint(11, (1, 9)))  # the context is 8
    toy.why_mask(torch.randint(11, (400,)), torch.randint(11, (40,)), small())
    assert F.scaled_dot_product_attention is attention
    assert torch.equal(model(idx)[0], before)


# The program


def save_model(name, text=TEXT, block_size=50, merges=None):
    """Keep a small GPT with random weights, for the characters of `text`, as gpt.py keeps a run.

    With merges, its tokens are pieces of words.
    """
    tokenizer = gpt.BPETokenizer(merges) if merges else gpt.build_char_tokenizer(text)
    config = tiny_config(tokenizer="bpe" if merges else "char", block_size=block_size,
                         vocab_size=tokenizer.vocab_size)
    model = noisy_gpt(config)
    keeper = gpt.Keeper(name)
    keeper.about = {"config": asdict(config), "text_sha256": "", "vocabulary": tokenizer.vocabulary,
                    "bigram": None}
    keeper.save(model, gpt.Report(gpt.build_optimizer(model, config)))
    return model, tokenizer


@pytest.fixture
def run_toy(in_tmp, capsys):
    """Call the program with arguments, in a temporary folder -> (exit code, stdout, stderr)."""
    (in_tmp / "cats.txt").write_text(TEXT, encoding="utf-8")

    def run(*arguments):
        code = gpt.run_cleanly("attention_toy.py", toy.command, list(arguments))
        return code, *capsys.readouterr()

    return run


def is_plain(output):
    return max(map(len, output.splitlines())) < 80 and not re.search("[\r\x1b\x08]", output)


def heads_in(output):
    """What is shown of each head: pairs of (lines of the picture, the words below it)."""
    heads = re.split(r"\n\nLayer \d, head \d\n-+\n", output.removesuffix("\n"))[1:]
    return [(picture.split("\n"), words)
            for picture, words in (head.split("\n\n") for head in heads)]


def is_one_line(result, *says):
    """Was this a mistake of the user, told in one line that says this?"""
    code, out, err = result
    return ((code, out, err.count("\n")) == (2, "", 1) and err.startswith("attention_toy.py: ")
            and all(part in err for part in says))


@pytest.fixture
def small_ladder(monkeypatch):
    """For tests that run the ladder, but not for its losses' sake."""
    monkeypatch.setattr(toy, "LADDER", small(block_size=24))


def test_the_quick_run(run_toy):
    code, out, err = run_toy("--quick", "--text", "cats.txt")
    assert (code, err) == (0, "")
    assert is_plain(out) and "10. The ladder" not in out
    titles = re.findall(r"^(\d+)\. .*\n-+$", out, re.MULTILINE)
    assert titles == list("123456789")                              # no number twice
    same = re.findall(r"^(.*): the same numbers, within (\S+)$", out, re.MULTILINE)
    assert [names for names, _ in same] == [
        "versions 1 and 2", "versions 2 and 3", "version 4 and one_head",
        "several_heads, joined, and CausalSelfAttention"]
    assert all(float(difference) <= 1e-5 for _, difference in same)
    assert out.count("t o ␣ b e ␣ o r") == 2                        # in versions 1 and 4 alone
    peeked, masked = map(float, re.findall(r"loss (?:of|is) (\d+\.\d+)[:.]", " ".join(out.split())))
    assert peeked < 1 and masked > peeked + 2
    received = [line.split()[-3:] for line in out.split("\n")
                if line.startswith(("    in order", "    shuffled"))]
    assert received[0] == received[1] and received[2] != received[3]


def test_the_whole_run_ends_with_the_first_rows_and_a_trained_head(run_toy, small_ladder):
    code, out, err = run_toy("--text", "cats.txt")
    assert (code, err) == (0, "") and is_plain(out)
    ladder, head = out.split("10. The ladder")[1].split("11. Trained heads")
    assert [row for row in toy.ROWS if f"\n{row} " in ladder] == toy.FIRST_ROWS
    val_text = gpt.split(TEXT)[1]
    assert f"It reads {val_text[:24]!r}." in head
    [(picture, words)] = heads_in(head)
    assert picture[0] == ("    " + "".join(toy.cell(c, 2) for c in val_text[:24])).rstrip()
    assert len(picture) == 25 and re.match(r"It looks \d", words)


@pytest.mark.parametrize("arguments, minutes", [(["--ladder"], 6), (["--ladder", "2"], 12)])
def test_the_ladder_alone_with_all_rows(run_toy, small_ladder, arguments, minutes):
    code, out, err = run_toy(*arguments, "--text", "cats.txt")
    assert (code, err) == (0, "") and is_plain(out)
    assert f"about {minutes} minutes" in out.split("loss")[0]       # before it starts
    assert re.findall(r"^(\S.*?)  +[\d,]+  +\d\.\d{4}", out, re.MULTILINE) == list(toy.ROWS)
    assert "From attention on, the largest gains: " in out and "1. Tensors" not in out


def test_a_reader_that_leaves_ends_the_run_quietly(command):
    script = f"{sys.executable} {ROOT / 'attention_toy.py'} --quick --text cats.txt | head -n 3"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], cwd=command.folder,
                          capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (141, b"") and done.stdout.count(b"\n") == 3


def test_a_model_is_shown_head_by_head(run_toy):
    model, tokenizer = save_model("small")
    code, out, err = run_toy("--model", "small", "--prompt", r"The cat\nThe")
    assert (code, err) == (0, "")
    assert is_plain(out) and "data/small.pt" in out and r"It reads 'The cat\nThe'." in out
    heads = heads_in(out)
    assert len(heads) == 4
    tokens = [label.ljust(2) for label in ["T", "h", "e", "␣", "c", "a", "t", "↵", "T", "h", "e"]]
    for (top, *rows), words in heads:
        assert top == ("    " + "".join(tokens)).rstrip()
        assert [row[:2] for row in rows] == tokens
        assert all(CELLS.match(row[4:]) and len(row) <= 4 + 2 * t
                   for t, row in enumerate(rows, start=1))
        assert re.fullmatch(r"It looks \d+\.\d back on average; \d+% to the previous token, "
                            r"\d+% to the first\.", words)
    weights = toy.weights_of_all_heads(model, torch.tensor([tokenizer.encode("The cat\nThe")]))
    for (picture, words), shown in zip(heads, [*weights[0][0], *weights[1][0]]):
        assert picture == toy.picture(shown, "The cat\nThe").split("\n")
        assert words == f"It {toy.in_words(shown)}."


def test_a_model_of_pieces_of_words_is_shown_token_by_token(run_toy):
    _, tokenizer = save_model("pieces", merges=[(116, 104), (256, 101), (32, 257), (32, 99)])
    code, out, err = run_toy("--model", "pieces", "--prompt", "the cat, the")
    assert (code, err) == (0, "") and is_plain(out)
    heads = heads_in(out)
    assert len(heads) == 4 and len(tokenizer.encode("the cat, the")) == 6
    for (top, *rows), _ in heads:
        assert top == " " * 10 + "th␣ca t , ␣t"
        assert [row[:10].strip() for row in rows] == ["the", "␣c", "a", "t", ",", "␣the"]
        assert all(CELLS.match(row[10:]) and len(row) <= 10 + 2 * t
                   for t, row in enumerate(rows, start=1))
    code, out, err = run_toy("--model", "pieces")
    assert (code, err) == (0, "") and r"It reads 'ROMEO:\nBut soft'." in out


@pytest.mark.parametrize("merges", [None, [(97, 116), (32, 115)]])      # at, and a space with s
def test_as_many_tokens_as_fit_80_columns_are_shown_and_no_more(run_toy, merges):
    _, tokenizer = save_model("wide", merges=merges)
    fits = tokenizer.decode(tokenizer.encode(TEXT)[:toy.MOST_TOKENS]).replace("\n", r"\n")
    code, out, err = run_toy("--model", "wide", "--prompt", fits)
    assert (code, err) == (0, "") and is_plain(out)
    assert all(len(picture) == 1 + toy.MOST_TOKENS for picture, _ in heads_in(out))
    assert is_one_line(run_toy("--model", "wide", "--prompt", fits + "T"),
                       f"{toy.MOST_TOKENS + 1} tokens", f"{toy.MOST_TOKENS} fit into 80 columns")


def test_a_model_has_a_name_and_a_path(run_toy):
    save_model("small")
    by_name = run_toy("--model", "small")
    assert by_name[0] == 0 and by_name == run_toy("--model", "data/small.pt")


@pytest.mark.parametrize("text, block_size, prompt", [
    ("ROMEO:\nBut soft, what light", 50, r"'ROMEO:\\nBut soft'"),
    ("ROMEO:\nBut soft, what light", 8, r"'ROMEO:\\nB'"),           # no more than the context
    ("banana", 50, "'[abn]{15}'"), ("banana", 2, "'[abn]{2}'"), ("\n", 50, r"'(\\n){15}'")])
def test_without_a_prompt_a_model_reads_what_it_can(run_toy, text, block_size, prompt):
    save_model("small", text, block_size=block_size)
    code, out, err = run_toy("--model", "small")
    assert (code, err) == (0, "")
    assert is_plain(out) and re.search(f"It reads {prompt}", out)


def test_a_name_cannot_write_to_the_terminal(run_toy):
    save_model("sm\x1b[2Jall")
    code, out, err = run_toy("--model", "sm\x1b[2Jall")
    assert (code, err) == (0, "")
    assert is_plain(out) and r"data/sm\x1b[2Jall.pt" in out


@pytest.mark.parametrize("prompt, says", [
    ("The bög", "'ö'"), ("T", "at least 2"), ("", "at least 2"),
    ("The cat number", "14 tokens; it needs at least 2, and 10 fit into the context")])
def test_a_prompt_that_cannot_be_read_gets_one_line(run_toy, prompt, says):
    save_model("small", block_size=10)
    assert is_one_line(run_toy("--model", "small", "--prompt", prompt), says)


def test_a_model_without_a_past_gets_one_line(run_toy):
    save_model("short", block_size=1)
    assert is_one_line(run_toy("--model", "short"), "data/short.pt looks at one token")


def test_a_bad_checkpoint_gets_one_line(run_toy):
    save_model("small")
    assert is_one_line(run_toy("--model", "nowhere.pt"), "there is no run nowhere.pt", "small")
    assert is_one_line(run_toy("--model", "cats.txt"), "cats.txt is no whole checkpoint")


@pytest.mark.parametrize("arguments, says", [
    (["--prompt", "The"], "--model"), (["--model", "a.pt", "--quick"], "without --quick"),
    (["--model", "a.pt", "--text", "b"], "without --quick"), (["--text", "nowhere.txt"], "nowhere"),
    (["--model", "a.pt", "--ladder"], "without --quick"), (["--ladder", "0"], "at least 1 seed"),
    (["--ladder", "--quick"], "--quick leaves out"), (["--ladder", "x"], "--ladder"),
    (["--qui"], "--qui"), (["cats.txt"], "cats.txt"), (["--text", "short.txt"], "train on")])
def test_options_that_do_not_fit_get_one_line(run_toy, in_tmp, arguments, says):
    (in_tmp / "short.txt").write_text("too short", encoding="utf-8")
    assert is_one_line(run_toy(*arguments), says)


def test_importing_does_and_prints_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", "import attention_toy"], cwd=tmp_path, timeout=60,
                          env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
                          capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert list(tmp_path.iterdir()) == []


def test_gpt_depends_on_nothing_here():
    assert "attention_toy" not in (ROOT / "gpt.py").read_text(encoding="utf-8")


def test_a_gpt_2_is_shown_token_by_token(run_toy):
    folder = ROOT / "tests" / "gpt2"
    code, out, err = run_toy("--model", str(folder), "--prompt", "the rain in")
    assert (code, err) == (0, "") and is_plain(out)
    heads = heads_in(out)
    assert len(heads) == 2 * 4                                      # layers and heads
    _, tokenizer = gpt.load_gpt2(folder)
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("the rain in")]
    for (top, *rows), _ in heads:
        assert [row[:8].rstrip() for row in rows] == [piece.replace(" ", "␣")[:8] for piece in pieces]
