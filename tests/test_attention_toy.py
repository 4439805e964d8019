"""attention_toy.py: the four versions, the pictures, a model's heads, the program."""

import ast
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TEXT, chdir, main, noisy_gpt, save_model, tiny_config

import attention_toy as toy
import gpt

MEANS = (toy.mean_by_loop, toy.mean_by_matrix, toy.mean_by_softmax)
CELLS = re.compile("^[ ░▒▓█]*$")


def version_4(x):
    torch.manual_seed(1)
    return toy.self_attention(x, *torch.randn(3, x.shape[2], 4))


def two_heads(x):
    torch.manual_seed(1)
    return toy.heads_at_once(x, *torch.randn(3, x.shape[2], x.shape[2]), n_head=2)


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(3, 7, 6)                                     # (B, T, C)


# The four versions


@pytest.mark.parametrize("version", MEANS)
def test_a_result_is_the_mean_of_a_token_and_those_before_it(version):
    x = torch.tensor([[[6.0, 0.0], [2.0, 4.0], [1.0, 8.0]], [[0.0, 0.0], [1.0, -1.0], [5.0, 1.0]]])
    expected = torch.tensor([[[6.0, 0.0], [4.0, 2.0], [3.0, 4.0]],
                             [[0.0, 0.0], [0.5, -0.5], [2.0, 0.0]]])
    torch.testing.assert_close(version(x), expected)


@pytest.mark.parametrize("hs", [1, 4, 64])
def test_version_4_is_the_function_of_pytorch_and_of_gpt(x, hs):
    matrices = torch.randn(3, 6, hs) / 3
    q, k, v = (x @ matrix for matrix in matrices)
    result = toy.self_attention(x, *matrices)
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(result, fused, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(result, gpt.attention(q, k, v), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("version", [*MEANS, version_4, two_heads])
def test_a_later_token_never_changes_an_earlier_result(version, x):
    before = version(x)
    for t in range(x.shape[1]):
        changed = x.clone()
        changed[:, t] += 1
        after = version(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.isclose(after[:, t], before[:, t]).all(dim=-1).any()   # but its own, yes


@pytest.mark.parametrize("version", MEANS)
def test_the_weights_behind_a_mean_are_those_that_it_collects_with(version, x):
    torch.testing.assert_close(toy.weights_behind(version, 7) @ x, version(x))


def test_hand_made_matrices_find_what_the_text_says():
    """r in "to be or" finds o, e and o, the numbers 15, 5 and 15; b the o; e and o the spaces."""
    result = toy.self_attention(toy.example(), *toy.hand_made_matrices())[0]
    assert result[7].tolist() == pytest.approx([35 / 3, 1], abs=0.05)
    assert result[3].tolist() == pytest.approx([15, 1], abs=0.05)
    for vowel in (4, 6):
        assert result[vowel].tolist() == pytest.approx([27, 0], abs=0.1)
    assert result[2].tolist() == pytest.approx([62 / 3, 1 / 3], abs=1e-4)       # a space


@pytest.mark.parametrize("n_head", [1, 2, 8])
def test_heads_at_once_are_those_of_gpt(n_head):
    torch.manual_seed(0)
    module = gpt.CausalSelfAttention(tiny_config(n_head=n_head))
    torch.nn.init.zeros_(module.qkv.bias)
    x, matrices = torch.randn(3, 7, 16), module.qkv.weight.T.chunk(3, dim=1)
    mixed = toy.heads_at_once(x, *matrices, n_head) @ module.proj.weight.T + module.proj.bias
    torch.testing.assert_close(mixed, module(x), atol=1e-6, rtol=1e-5)


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


@pytest.mark.parametrize("text", ["", "a", "abc", "\n\n", "中", "a中", " 中文\n", "\x1b\u0301", "\ta", "\u3000",
                                  "a\u200cb"])
@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_a_cell_has_its_width(text, width):
    cell = toy.cell(text, width)
    assert sum(2 if c in "中文\u3000" else c not in "\u0301\u200c" for c in cell) == width
    assert re.sub("[\u3000\u200c]", "", cell).isprintable()


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
    model, caught = noisy_gpt(tiny_config(position=position)), []
    idx = torch.randint(11, (3, 7))
    hooks = [block.attn.register_forward_hook(lambda module, inputs, output: caught.append((*inputs, output)))
             for block in model.blocks]
    before, _ = model(idx)
    for hook in hooks:
        hook.remove()
    layers = toy.weights_of_all_heads(model, idx)
    assert len(layers) == len(model.blocks) == len(caught)
    for block, weights, (x, output) in zip(model.blocks, layers, caught):
        assert weights.shape == (3, 2, 7, 7) and (weights.triu(1) == 0).all()
        v = gpt.split_heads(block.attn.qkv(x)[..., 32:], 2)         # (3, 7, 48) -> (3, 2, 7, 8)
        result = block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(result, output, atol=1e-5, rtol=1e-4)
    assert torch.equal(model(idx)[0], before)                       # the model is as it was


# Embeddings


def test_nearest_embeddings():
    """The answer is known: tokens lie on a circle, at these angles."""
    tokenizer = gpt.CharTokenizer(".Baxyz")
    model = noisy_gpt(tiny_config(vocab_size=6, n_embd=16))
    angles = torch.tensor([180.0, 90, 0, 10, 80, 230]).deg2rad()
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


def run(*arguments):
    """attention_toy.py with these arguments -> (exit code, stdout, stderr)."""
    return main(*arguments, program=lambda words: gpt.run_cleanly("attention_toy.py", toy.command, words))


def output_of(*arguments):
    """What it prints, if all goes well."""
    code, out, err = run(*arguments)
    assert (code, err) == (0, "") and is_plain(out)
    return out


def is_plain(output):
    return max(map(len, output.splitlines())) < 80 and not re.search("[\r\x1b\x08]", output)


def heads_in(output):
    """What is shown of each head: pairs of (lines of the picture, the words below it)."""
    heads = re.split(r"\n\nLayer \d, head \d\n-+\n", output.removesuffix("\n"))[1:]
    return [(picture.split("\n"), words)
            for picture, words, *_ in (head.split("\n\n") for head in heads)]


def shapes_in(chapter):
    """{name: shape} of all lines that tell one."""
    return {name: ast.literal_eval(shape)
            for name, shape in re.findall(r"^(\w+) +(\(\d+, .*?\))  +\S", chapter, re.MULTILINE)}


@pytest.fixture(scope="module")
def chapters(tmp_path_factory):
    """What --quick prints, cut before each heading."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "cats.txt").write_text(TEXT, encoding="utf-8")
    with chdir(folder):
        out = output_of("--quick", "--text", "cats.txt")
    return re.split(r"^(?=\S.*\n-{3,}$)", out, flags=re.MULTILINE)[1:]


def test_the_quick_run(chapters):
    """All that is promised can be seen, and what is said there is true."""
    out = "".join(chapters)
    tensors, _, v1, v2, v3, v4, once_more, heads, questions = chapters
    assert [chapter[0] for chapter in chapters if chapter[0].isdigit()] == list("12345678")
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
    assert "never exchange anything" in once_more and once_more.rstrip().endswith("is the same.")
    same = re.findall(r"^(.*): the same numbers, up to (\S+)$", out, re.MULTILINE)
    assert [names for names, _ in same] == [
        "versions 1 and 2", "versions 2 and 3", "version 4 and gpt.attention",
        "heads at once and one by one", "mixed and gpt.CausalSelfAttention"]
    assert all(float(difference) <= 1e-5 for _, difference in same)
    assert out.count("t o ␣ b e ␣ o r") == 2                        # in versions 1 and 4 alone
    peeked, masked = map(float, re.findall(r"(?:loss of|writes, it is) (\d+\.\d+)[:;]", " ".join(questions.split())))
    assert peeked < 1 and masked > peeked + 1


def test_the_numbers_of_the_questions(chapters):
    questions = chapters[-1]
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


def test_the_last_chapter_trains_heads_and_shows_them(capsys):
    tokenizer = gpt.CharTokenizer(TEXT)
    data = gpt.encode_text(TEXT, tokenizer)
    toy.train_and_show_heads(data, data, tokenizer, max_steps=5)
    out = capsys.readouterr().out
    assert is_plain(out) and f"It reads {TEXT[:24]!r}." in out
    assert len(heads_in(out)) == 4
    for picture, words in heads_in(out):
        assert picture[0] == ("    " + "".join(toy.cell(c, 2) for c in TEXT[:24])).rstrip()
        assert len(picture) == 25 and re.match(r"It looks \d", words)
    assert [line.split()[0] for line in out.strip().split("\n")[-3:]] == ["a", ".", "T"]


def test_a_model_is_shown_head_by_head(in_tmp):
    model, tokenizer = save_model("small", block_size=50)
    out = output_of("--model", "small", "--prompt", r"The cat\nThe")
    assert "data/small.pt" in out and r"It reads 'The cat\nThe'." in out
    weights = toy.weights_of_all_heads(model, torch.tensor([tokenizer.encode("The cat\nThe")]))
    assert len(heads_in(out)) == 4
    for (picture, words), shown in zip(heads_in(out), [*weights[0][0], *weights[1][0]]):
        assert picture == toy.picture(shown, "The cat\nThe").split("\n")
        assert words == f"It {toy.in_words(shown)}."
    assert len(out.split("Nearest neighbors")[1].strip().split("\n")) == 2 + 3


def test_a_model_of_subwords_is_shown_token_by_token(in_tmp):
    tokenizer = gpt.BPETokenizer([(b"t", b"h"), (b"th", b"e"), (b" ", b"the"), (b" ", b"c")])
    save_model("pieces", tokenizer=tokenizer, block_size=50)
    heads = heads_in(output_of("--model", "pieces", "--prompt", "the cat, the"))
    assert len(heads) == 4 and len(tokenizer.encode("the cat, the")) == 6
    for (top, *rows), _ in heads:
        assert top == " " * 10 + "th␣ca t , ␣t"
        assert [row[:10].strip() for row in rows] == ["the", "␣c", "a", "t", ",", "␣the"]
        assert all(CELLS.match(row[10:]) and len(row) <= 10 + 2 * t
                   for t, row in enumerate(rows, start=1))


def test_a_gpt_2_is_shown_token_by_token(in_tmp):
    folder = ROOT / "tests" / "gpt2"
    heads = heads_in(output_of("--model", folder, "--prompt", "the rain in"))
    assert len(heads) == 2 * 4                                      # layers and heads
    _, tokenizer = gpt.load_gpt2(folder)
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("the rain in")]
    for (top, *rows), _ in heads:
        assert [row[:8].rstrip() for row in rows] == [piece.replace(" ", "␣")[:8] for piece in pieces]


@pytest.mark.parametrize("merges", [None, [(b"a", b"t"), (b" ", b"s")]])      # at, and a space with s
def test_as_many_tokens_as_fit_80_columns_are_shown_and_no_more(in_tmp, merges):
    _, tokenizer = save_model("wide", tokenizer=merges and gpt.BPETokenizer(merges), block_size=50)
    fits = tokenizer.decode(tokenizer.encode(TEXT)[:toy.MOST_TOKENS]).replace("\n", r"\n")
    out = output_of("--model", "wide", "--prompt", fits)
    assert all(len(picture) == 1 + toy.MOST_TOKENS for picture, _ in heads_in(out))
    assert run("--model", "wide", "--prompt", fits + "T")[0] == 2


@pytest.mark.parametrize("tokenizer, block_size, length", [
    (gpt.CharTokenizer("banana"), 50, 16), (gpt.CharTokenizer("banana"), 2, 2),     # no more than the context
    (gpt.CharTokenizer("\n"), 50, 16), (gpt.BPETokenizer([]), 50, 16)])             # bytes that are no UTF-8
def test_without_a_prompt_a_model_reads_what_it_has_written(in_tmp, tokenizer, block_size, length):
    save_model("small", tokenizer=tokenizer, block_size=block_size)
    out = output_of("--model", "small")
    assert all(len(picture) == 1 + length for picture, _ in heads_in(out))
    assert tokenizer.vocab_size > 3 or re.search(r"It reads '([abn]|\\n)+'", out)


@pytest.mark.parametrize("arguments", [
    ["--model", "small", "--prompt", "The bög"], ["--model", "small", "--prompt", "T"],
    ["--model", "small", "--prompt", ""], ["--model", "small", "--prompt", "The cat number"],   # 14, not 10
    ["--model", "small", "--quick"], ["--model", "small", "--text", "short.txt"],
    ["--model", "short"], ["--prompt", "The"], ["--text", "short.txt"], ["--qui"], ["cats.txt"]])
def test_what_it_cannot_show_gets_one_line(in_tmp, arguments):
    (in_tmp / "short.txt").write_text("too short", encoding="utf-8")
    save_model("small", block_size=10)
    save_model("short", block_size=1)
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("attention_toy.py: ")
