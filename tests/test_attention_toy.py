"""attention_toy.py: the four versions, the pictures, a model's heads, the program."""

import ast
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TEXT, noisy_gpt, save_model, tiny_config

import attention_toy as toy
import gpt

AVERAGES = (toy.average_by_loop, toy.average_by_matrix, toy.average_by_softmax)
CELLS = re.compile("^[ ░▒▓█]*$")


def version_4(x):
    torch.manual_seed(1)
    return toy.self_attention(x, *torch.randn(3, x.shape[2], 4))


def four_heads(x):
    torch.manual_seed(1)
    return toy.heads_at_once(x, *torch.randn(3, x.shape[2], x.shape[2]), n_head=3)


VERSIONS = (*AVERAGES, version_4, four_heads)


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(3, 7, 6)                                     # (B, T, C)


# The four versions


@pytest.mark.parametrize("version", AVERAGES)
def test_an_average_is_the_mean_of_a_token_and_those_before_it(version):
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
def test_attention_weights_sum_to_1_and_leave_out_the_future(weights):
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    assert (weights >= 0).all() and (weights.triu(diagonal=1) == 0).all()
    assert (weights.diagonal(dim1=-2, dim2=-1) > 0).all()


@pytest.mark.parametrize("version", AVERAGES)
def test_the_weights_behind_an_average_are_those_that_it_gathers_with(version, x):
    torch.testing.assert_close(toy.weights_behind(version, 7) @ x, version(x))


def test_hand_made_matrices_find_what_the_text_says():
    """r in "to be or" finds o, e and o, the numbers 15, 5 and 15; b the o; e and o the spaces."""
    result = toy.self_attention(toy.example(), *toy.hand_made_matrices())[0]
    assert result[7].tolist() == pytest.approx([35 / 3, 1], abs=0.05)
    assert result[3].tolist() == pytest.approx([15, 1], abs=0.05)
    for vowel in (4, 6):
        assert result[vowel].tolist() == pytest.approx([27, 0], abs=0.1)
    assert result[2].tolist() == pytest.approx([62 / 3, 1 / 3], abs=1e-4)       # a space


# Several heads


@pytest.mark.parametrize("n_head", [1, 2, 8])
def test_heads_at_once_are_those_of_gpt(n_head):
    torch.manual_seed(0)
    attention = gpt.CausalSelfAttention(tiny_config(n_head=n_head, bias=False))
    x, matrices = torch.randn(3, 7, 16), attention.qkv.weight.T.chunk(3, dim=1)
    mixed = toy.heads_at_once(x, *matrices, n_head) @ attention.proj.weight.T
    torch.testing.assert_close(mixed, attention(x, torch.arange(7)), atol=1e-6, rtol=1e-5)
    heads = zip(*(matrix.chunk(n_head, dim=1) for matrix in matrices))
    torch.testing.assert_close(mixed, gpt.several_heads(x, heads, attention.proj.weight.T), atol=1e-6, rtol=1e-5)


def test_the_example_is_what_its_channels_say():
    x = toy.example()
    assert x.shape == (2, 8, 4) and x.dtype == torch.float32
    assert x[0, [3, 1, 2]].tolist() == [[0, 1, 0, 2], [1, 0, 0, 15], [0, 0, 1, 27]]     # b, o, space
    assert (x[..., :3].sum(dim=-1) == 1).all()


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


def test_a_picture_of_subwords():
    weights = torch.ones(4, 4).tril() / torch.arange(1, 5)[:, None]
    head, *rows = toy.picture(weights, [" the", "\n", "中文 characters", "?"]).split("\n")
    assert head == " " * 10 + "␣t↵ 中?"
    assert [row.split("█")[0].split("▓")[0].split("▒")[0] for row in rows] == [
        "␣the      ", "↵         ", "中文␣cha  ", "?         "]        # 8 columns and 2


@pytest.mark.parametrize("text", ["", "a", "abc", "\n\n", "中", "a中", " 中文\n", "\x1b\u0301", "\ta", "\u3000"])
@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_a_cell_has_its_width(text, width):
    cell = toy.cell(text, width)
    assert sum(2 if c in "中文\u3000" else c != "\u0301" for c in cell) == width
    assert cell.replace("\u3000", "").isprintable()


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


def shorten(monkeypatch, steps):
    monkeypatch.setattr(toy, "train", lambda model, train_data, val_data, config: gpt.train(
        model, train_data, val_data, replace(config, max_steps=steps, eval_interval=steps)))


@pytest.fixture
def short_training(monkeypatch):
    """For tests that run the program, but not for the sake of what it trains."""
    shorten(monkeypatch, 5)


def test_looking_and_taking_the_mask_off_leave_pytorch_as_it_was(capsys, short_training):
    model, attention = noisy_gpt(tiny_config()), F.scaled_dot_product_attention
    idx = torch.randint(11, (1, 5))
    before = model(idx)[0]
    toy.weights_of_all_heads(model, idx)
    with pytest.raises(ValueError):
        toy.weights_of_all_heads(model, torch.randint(11, (1, 9)))  # the context is 8
    toy.why_mask(torch.randint(11, (400,)), torch.randint(11, (40,)), 11)
    assert F.scaled_dot_product_attention is attention
    assert torch.equal(model(idx)[0], before)


# Embeddings


def test_nearest_embeddings():
    """The answer is known: tokens lie on a circle, at these angles."""
    tokenizer = gpt.CharTokenizer("xaBy.z")
    model = noisy_gpt(tiny_config(vocab_size=6, n_embd=16))
    angles = torch.tensor([10.0, 0, 90, 80, 180, 230]).deg2rad()
    with torch.no_grad():
        model.token_embedding.weight[:] = 0
        model.token_embedding.weight[:, 3], model.token_embedding.weight[:, 5] = 2 * angles.cos(), 2 * angles.sin()
    lines = [line.split() for line in toy.nearest(model, tokenizer, [5, 0])]
    assert [line[:5] for line in lines] == [["a", "x", "0.98", "y", "0.17"], ["B", "y", "0.98", "x", "0.17"],
                                            [".", "z", "0.64", "B", lines[2][4]]]
    assert [line[8] for line in lines] == ["-0.64", lines[1][8], "-0.98"]
    for line in lines:
        cosines = list(map(float, line[2::2]))
        assert len(cosines) == 4 and cosines == sorted(cosines, reverse=True)


@pytest.mark.parametrize("vocabulary, shown", [("\nxyz", "zx↵"), ("a\nxy", "ay↵"), ("\nx", "x↵")])
def test_without_the_usual_characters_those_that_it_reads_have_neighbors(vocabulary, shown):
    model = noisy_gpt(tiny_config(vocab_size=len(vocabulary)))
    lines = [line.split() for line in toy.nearest(model, gpt.CharTokenizer(vocabulary), [len(vocabulary) - 1, 1, 1, 0])]
    assert [line[0] for line in lines] == list(shown)
    assert all(len(line) == 1 + 2 * (len(vocabulary) - 1) for line in lines)


# The program


def is_plain(output):
    return max(map(len, output.splitlines())) < 80 and not re.search("[\r\x1b\x08]", output)


def heads_in(output):
    """What is shown of each head: pairs of (lines of the picture, the words below it)."""
    heads = re.split(r"\n\nLayer \d, head \d\n-+\n", output.removesuffix("\n"))[1:]
    return [(picture.split("\n"), words)
            for picture, words, *_ in (head.split("\n\n") for head in heads)]


def is_one_line(result, *says):
    """Was this a mistake of the user, told in one line that says this?"""
    code, out, err = result
    return ((code, out, err.count("\n")) == (2, "", 1) and err.startswith("attention_toy.py: ")
            and all(part in err for part in says))


def shapes_in(chapter):
    """{name: shape} of all lines that tell one."""
    return {name: ast.literal_eval(shape)
            for name, shape in re.findall(r"^(\w+) +(\(\d+, .*?\))  +\S", chapter, re.MULTILINE)}


def chapters_in(output):
    """The text below each heading."""
    return re.split(r"^(?=\S.*\n-{3,}$)", output, flags=re.MULTILINE)[1:]


def test_the_quick_run(run_toy, monkeypatch):
    """All that is promised can be seen, and what is said there is true."""
    shorten(monkeypatch, 150)
    code, out, err = run_toy("--quick", "--text", "cats.txt")
    assert (code, err) == (0, "")
    assert is_plain(out) and "9. Trained heads" not in out
    tensors, _, v1, v2, v3, v4, once_more, heads, questions = chapters_in(out)
    assert [chapter.split(".")[0] for chapter in chapters_in(out) if chapter[0].isdigit()] == list("12345678")
    assert "        0.33  0.33  0.33        1.00  8.00        3.00  4.00\n" in tensors
    for chapter, names in ((v1, "x seen result weights"), (v2, "x ones weights result"),
                           (v3, "x scores weights result"),
                           (v4, "x w_query q k v scores weights result"),
                           (once_more, "x w_query q k v scores weights result"), (heads, "x q weights result mixed")):
        assert list(shapes_in(chapter)) == names.split()
    for chapter in (v1, v2, v3):
        assert shapes_in(chapter)["result"] == (2, 8, 4) and shapes_in(chapter)["weights"] == (8, 8)
    assert shapes_in(v4) == {"x": (2, 8, 4), "w_query": (4, 2), "q": (2, 8, 2), "k": (2, 8, 2), "v": (2, 8, 2),
                             "scores": (2, 8, 8), "weights": (2, 8, 8), "result": (2, 8, 2)}
    assert shapes_in(once_more)["x"] == (4, 8, 32) and shapes_in(once_more)["scores"] == (4, 8, 8)
    assert "never exchange anything" in once_more and once_more.rstrip().endswith("is the same.")
    same = re.findall(r"^(.*): the same numbers, up to (\S+)$", out, re.MULTILINE)
    assert [names for names, _ in same] == [
        "versions 1 and 2", "versions 2 and 3", "version 4 and gpt.one_head",
        "mixed and gpt.several_heads", "mixed and gpt.CausalSelfAttention"]
    assert all(float(difference) <= 1e-5 for _, difference in same)
    assert out.count("t o ␣ b e ␣ o r") == 2                        # in versions 1 and 4 alone
    peeked, masked = map(float, re.findall(r"(?:loss of|writes, it is) (\d+\.\d+)[:;]", " ".join(questions.split())))
    assert peeked < 1 and masked > peeked + 1
    assert all(word in questions for word in ("encoder", "decoder", "self-attention", "cross-attention"))
    assert "softmax(Q K^T / sqrt(hs) + M) V" in v4


def test_the_numbers_of_the_questions(run_toy, short_training):
    questions = chapters_in(run_toy("--quick", "--text", "cats.txt")[1])[-1]
    received = [line.split()[-4:] for line in questions.split("\n") if "in order" in line or "shuffled  " in line]
    assert len(received) == 4 and received[0] == received[1] and received[2] != received[3]
    rows = [list(map(float, line.replace("sqrt(hs)", "2").split())) for line in questions.split("\n")
            if line.startswith("   ") and len(line.split()) == 5 and line.split()[0] in ("4", "16", "64", "256")]
    assert [row[0] for row in rows] == [4, 4, 16, 16, 64, 64, 256, 256]
    for hs, divided, variance, largest, slope in rows:
        assert variance == pytest.approx(1 if divided == 2 else hs, rel=0.1)
        assert largest < 0.45 if divided == 2 else largest > 0.5
    waves = [line[4:].ljust(64) for line in questions.split("\n") if re.fullmatch("    [ ░▒▓█]+", line)]
    assert len(waves) == 16 and {len(line) for line in waves} == {64}       # 32 positions, of 16 channels
    alike = list(map(float, re.search(r"tensor\(\[(.*)\]\)", questions)[1].split(",")))
    assert alike == alike[::-1] and alike[:4] == sorted(alike[:4]) and alike[3] == 8
    costs = [[float(number.replace(",", "")) for number in line.split()] for line in questions.split("\n")
             if re.match(r" +10+ |  +1,000 |  +10,000 ", line) and "." in line]
    assert [row[0] for row in costs] == [10, 100, 1000, 10000]
    for T, scores, qkv, rest, megabytes in costs:
        assert (scores, qkv, rest, megabytes) == (T**2, 3 * T * 128 * 32, 2 * T**2 * 32, 4 * T**2 / 1e6)


def test_the_whole_run_ends_with_trained_heads_and_their_embeddings(run_toy, short_training):
    code, out, err = run_toy("--text", "cats.txt")
    assert (code, err) == (0, "") and is_plain(out)
    head = out.split("9. Trained heads")[1]
    val_text = gpt.split(TEXT)[1]
    assert f"It reads {val_text[:24]!r}." in head
    for picture, words in heads_in(head):
        assert picture[0] == ("    " + "".join(toy.cell(c, 2) for c in val_text[:24])).rstrip()
        assert len(picture) == 25 and re.match(r"It looks \d", words)
    assert len(heads_in(head)) == 4
    assert [line.split()[0] for line in head.strip().split("\n")[-3:]] == ["a", ".", val_text[0]]


def test_version_1_begins_early_and_nothing_comes_from_the_tests():
    source = (ROOT / "attention_toy.py").read_text(encoding="utf-8")
    assert source[:source.index("# %% 3. Version 1")].count("\n") < 120
    assert source.count("\n") <= 619 and max(map(len, source.splitlines())) <= 100
    assert "tests" not in source and "ablation" not in source


def test_a_reader_that_leaves_ends_the_run_quietly(command):
    script = f"{sys.executable} {ROOT / 'attention_toy.py'} --quick --text cats.txt | head -n 3"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], cwd=command.folder,
                          capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (141, b"") and done.stdout.count(b"\n") == 3


def test_a_model_is_shown_head_by_head(run_toy):
    model, tokenizer = save_model("small", block_size=50)
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
    assert len(out.split("Nearest neighbors")[1].strip().split("\n")) == 2 + 3
    for (picture, words), shown in zip(heads, [*weights[0][0], *weights[1][0]]):
        assert picture == toy.picture(shown, "The cat\nThe").split("\n")
        assert words == f"It {toy.in_words(shown)}."


def test_a_model_of_subwords_is_shown_token_by_token(run_toy):
    tokenizer = gpt.BPETokenizer([(b"t", b"h"), (b"th", b"e"), (b" ", b"the"), (b" ", b"c")])
    save_model("pieces", tokenizer=tokenizer, block_size=50)
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
    assert (code, err) == (0, "") and "It reads " in out and len(heads_in(out)) == 4


@pytest.mark.parametrize("merges", [None, [(b"a", b"t"), (b" ", b"s")]])      # at, and a space with s
def test_as_many_tokens_as_fit_80_columns_are_shown_and_no_more(run_toy, merges):
    _, tokenizer = save_model("wide", tokenizer=merges and gpt.BPETokenizer(merges), block_size=50)
    fits = tokenizer.decode(tokenizer.encode(TEXT)[:toy.MOST_TOKENS]).replace("\n", r"\n")
    code, out, err = run_toy("--model", "wide", "--prompt", fits)
    assert (code, err) == (0, "") and is_plain(out)
    assert all(len(picture) == 1 + toy.MOST_TOKENS for picture, _ in heads_in(out))
    assert is_one_line(run_toy("--model", "wide", "--prompt", fits + "T"),
                       f"{toy.MOST_TOKENS + 1} tokens", f"{toy.MOST_TOKENS} fit into 80 columns")


def test_a_model_has_a_name_and_a_path(run_toy):
    save_model("small", block_size=50)
    by_name = run_toy("--model", "small")
    assert by_name[0] == 0 and by_name == run_toy("--model", "data/small.pt")


@pytest.mark.parametrize("text, block_size, prompt", [
    ("banana", 50, "'[abn]{16}'"), ("banana", 2, "'[abn]{2}'"),     # no more than the context
    ("\n", 50, r"'(\\n){16}'")])
def test_without_a_prompt_a_model_reads_what_it_has_written(run_toy, text, block_size, prompt):
    save_model("small", text, block_size=block_size)
    code, out, err = run_toy("--model", "small")
    assert (code, err) == (0, "")
    assert is_plain(out) and re.search(f"It reads {prompt}", out)


def test_a_name_cannot_write_to_the_terminal(run_toy):
    save_model("sm\x1b[2Jall", block_size=50)
    code, out, err = run_toy("--model", "sm\x1b[2Jall")
    assert (code, err) == (0, "")
    assert is_plain(out) and r"data/sm\x1b[2Jall.pt" in out


@pytest.mark.parametrize("prompt, says", [
    ("The bög", "'ö'"), ("T", "at least 2"), ("", "at least 2"),
    ("The cat number", "14 tokens; it needs at least 2, and 10 fit into the context")])
def test_a_prompt_that_cannot_be_read_gets_one_line(run_toy, prompt, says):
    save_model("small", block_size=10)
    assert is_one_line(run_toy("--model", "small", "--prompt", prompt), says)


def test_a_model_that_looks_at_one_token_gets_one_line(run_toy):
    save_model("short", block_size=1)
    assert is_one_line(run_toy("--model", "short"), "1 tokens; it needs at least 2")


def test_a_bad_checkpoint_gets_one_line(run_toy):
    save_model("small", block_size=50)
    assert is_one_line(run_toy("--model", "nowhere.pt"), "there is no run nowhere.pt", "small")
    assert is_one_line(run_toy("--model", "cats.txt"), "cats.txt")


@pytest.mark.parametrize("arguments, says", [
    (["--prompt", "The"], "--model"), (["--model", "a.pt", "--quick"], "without --quick"),
    (["--model", "a.pt", "--text", "b"], "without --quick"), (["--text", "nowhere.txt"], "nowhere"),
    (["--qui"], "--qui"), (["cats.txt"], "cats.txt"), (["--text", "short.txt"], "too few")])
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
    source = (ROOT / "gpt.py").read_text(encoding="utf-8")
    assert "import attention_toy" not in source and "from attention_toy" not in source


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
