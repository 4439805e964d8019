"""attention_toy.py: the four versions, the pictures, a model's attention, and the program."""

import math
import re
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TEXT, noisy_gpt, tiny_config

import attention_toy as toy
import gpt

AVERAGES = (toy.average_by_loop, toy.average_by_matrix, toy.average_by_softmax)
CELLS = re.compile("^[ ░▒▓█]*$")


def version_4(x, causal=True):
    torch.manual_seed(1)
    return toy.self_attention(x, *torch.randn(3, x.shape[2], 4), causal=causal)


VERSIONS = (*AVERAGES, version_4)


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
    torch.testing.assert_close(version(x)["result"], expected)


def test_versions_1_to_3_are_the_same_numbers(x):
    first, *others = (version(x)["result"] for version in AVERAGES)
    for other in others:
        torch.testing.assert_close(other, first, atol=1e-6, rtol=1e-5)


def test_version_4_is_the_fused_function_and_the_plain_form_of_gpt(x):
    for hs in (1, 4, 64):
        w_query, w_key, w_value = torch.randn(3, 6, hs) / 3
        result = toy.self_attention(x, w_query, w_key, w_value)["result"]
        fused = F.scaled_dot_product_attention(x @ w_query, x @ w_key, x @ w_value, is_causal=True)
        torch.testing.assert_close(result, fused, atol=2e-6, rtol=1e-5)
        plain = gpt.one_head(x, w_query, w_key, w_value)
        torch.testing.assert_close(result, plain, atol=2e-6, rtol=1e-5)


def test_version_4_by_hand():
    """Two tokens, scores ln(3) * sqrt(hs) / sqrt(hs) and 0, so weights 3/4 and 1/4."""
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    w_query = torch.tensor([[0.0, 0.0], [math.log(3) * math.sqrt(2), 0.0]])
    w_key = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    steps = toy.self_attention(x, w_query, w_key, w_value=torch.tensor([[8.0, 0.0], [0.0, 4.0]]))
    torch.testing.assert_close(steps["weights"], torch.tensor([[[1.0, 0.0], [0.75, 0.25]]]))
    torch.testing.assert_close(steps["result"], torch.tensor([[[8.0, 0.0], [6.0, 1.0]]]))


def test_version_4_with_queries_of_zero_is_version_3(x):
    steps = toy.self_attention(x, torch.zeros(6, 6), torch.randn(6, 6), torch.eye(6))
    torch.testing.assert_close(steps["result"], toy.average_by_softmax(x)["result"])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_later_token_never_changes_an_earlier_result(version, x):
    before = version(x)["result"]
    for t in range(x.shape[1]):
        changed = x.clone()
        changed[:, t] += 1
        after = version(changed)["result"]
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.isclose(after[:, t], before[:, t]).all(dim=-1).any()   # but its own, yes


def test_without_the_mask_a_later_token_is_seen(x):
    before, x[:, -1] = version_4(x, causal=False)["result"], 3.0
    assert not torch.allclose(version_4(x, causal=False)["result"][:, 0], before[:, 0], atol=1e-3)


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_weights_are_shares_of_the_past(version, x):
    weights = version(x)["weights"]
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    assert (weights >= 0).all() and (weights.triu(diagonal=1) == 0).all()
    assert (weights.diagonal(dim1=-2, dim2=-1) > 0).all()


def test_hand_made_weights_find_what_the_text_says():
    """r in "to be or" finds o, e and o, the places 15, 5 and 15; b in it finds the o."""
    result = toy.self_attention(toy.example(), *toy.hand_made_weights())["result"][0]
    assert result[7].tolist() == pytest.approx([35 / 3, 1], abs=0.05)
    assert result[3].tolist() == pytest.approx([15, 1], abs=0.05)
    assert result[2].tolist() == pytest.approx([35 / 3, 1 / 3], abs=1e-4)       # a space


# The pictures


def test_a_picture_has_two_columns_for_each_token():
    weights = torch.ones(5, 5).tril() / torch.arange(1, 6)[:, None]
    head, *rows = toy.picture(weights, "a\n \\b").split("\n")
    assert head == "    a \\n␣ \\ b"
    assert [row[:4] for row in rows] == ["a   ", "\\n  ", "␣   ", "\\   ", "b   "]
    assert [row[4:] for row in rows] == ["██", "▓▓▓▓", "▒▒▒▒▒▒", "▒▒▒▒▒▒▒▒", "▒▒▒▒▒▒▒▒▒▒"]


def test_a_darker_cell_is_a_larger_weight():
    pictures = [toy.picture(torch.tensor([[w / 100]]), "a") for w in range(101)]
    shades = [picture.split("\n")[1][4:] or "  " for picture in pictures]
    assert shades == sorted(shades, key="  ░░▒▒▓▓██".index)
    assert set(shades) == {"  ", "░░", "▒▒", "▓▓", "██"}
    assert shades[0] == "  " and shades[100] == "██"


@pytest.mark.parametrize("character", ["\n", "\t", "\x00", "\x1b", "\u0301", "\u200b", "é", "\\"])
def test_a_label_never_breaks_the_line(character):
    assert len(toy.label(character)) == 2 and toy.label(character).isprintable()
    assert toy.label("中") == "中"                                   # by itself two columns wide


def test_words_for_heads_whose_answer_is_known():
    itself, T = torch.eye(6), 6
    assert toy.in_words(itself) == ("looks 0.0 back on average; "
                                    "0% to the previous character, 0% to the first")
    previous = torch.eye(T).roll(-1, dims=1)
    previous[0] = itself[0]
    assert toy.in_words(previous) == ("looks 1.0 back on average; "
                                      "100% to the previous character, 20% to the first")
    first = torch.zeros(T, T)
    first[:, 0] = 1
    assert toy.in_words(first) == ("looks 3.0 back on average; "
                                   "20% to the previous character, 100% to the first")


# The tiny model


@pytest.mark.parametrize("make", [lambda: toy.Average(toy.average_by_matrix, 16),
                                  lambda: toy.Attention(16),
                                  lambda: toy.ManyHeads(tiny_config())])
def test_the_tiny_model_keeps_the_contract_and_the_order_of_time(make):
    torch.manual_seed(0)
    model = toy.TinyLanguageModel(make(), tiny_config())
    idx = torch.randint(11, (4, 8))
    logits, loss = model(idx, idx)
    assert (model.block_size, model.vocab_size, logits.shape) == (8, 11, (4, 8, 11))
    torch.testing.assert_close(loss, F.cross_entropy(logits.view(-1, 11), idx.view(-1)))
    assert model(idx)[1] is None
    changed = idx.clone()
    changed[:, 5:] = (idx[:, 5:] + 1) % 11
    assert torch.equal(model(changed)[0][:, :5], logits[:, :5])


def test_each_version_is_worth_what_the_file_says(short_baseline, capsys):
    """Here the answer is the token two places back: attention can find it, an average cannot."""
    torch.manual_seed(0)
    data = torch.randint(5, (400, 2)).repeat(1, 4).flatten()        # each pair, four times
    small = dict(vocab_size=5, block_size=8, n_embd=16, max_steps=150, eval_interval=150)
    config = gpt.Config(**{**toy.TINY, **small})
    rows, model = toy.compare(data[:2400], data[2400:], config)
    losses = {name: loss for name, _, loss, _ in rows}
    averages = [losses[name] for name in ("1 loop", "2 matrix product", "3 softmax")]
    assert max(averages) - min(averages) < 1e-4
    assert losses["4 self-attention"] < min(averages) - 0.05
    assert losses["4, with 4 heads"] < min(averages) - 0.05
    assert losses["none"] > min(averages) + 0.02            # an average is better than nothing
    assert gpt.evaluate(model, data[2400:]) == pytest.approx(losses["4 self-attention"])
    assert all(seconds > 0 for *_, seconds in rows)
    assert capsys.readouterr().out.count("step 150/150") == len(rows) - 1   # all but the bigram


def test_the_comparison_says_what_it_found(monkeypatch, capsys):
    """With losses and a model that are given."""
    losses = [2.5, 2.4, 2.25, 2.25, 2.2501, 2.0, 1.9]
    names = ["bigram", "none", "1 loop", "2 matrix product", "3 softmax", "4 self-attention",
             "4, with 4 heads"]
    tokenizer = gpt.build_char_tokenizer(TEXT)
    config = gpt.Config(**toy.TINY, vocab_size=tokenizer.vocab_size)
    model = toy.TinyLanguageModel(toy.Attention(config.n_embd), config)
    rows = [(name, 1000, loss, 1.0) for name, loss in zip(names, losses)]
    monkeypatch.setattr(toy, "compare", lambda *_: (rows, model))
    toy.show_comparison(None, torch.tensor(tokenizer.encode(TEXT)), config, tokenizer)
    output = capsys.readouterr().out
    assert is_plain(output) and all(f"\n{name} " in output for name in names)
    assert "differ by at most 1e-04.\nSelf-attention is 0.25 nats per token ahead" in output
    drawn = output.split("validation split begins:\n\n")[1].split("\n\n")[0].split("\n")
    assert drawn[0] == "    " + "".join(map(toy.label, TEXT[:24])).rstrip() and len(drawn) == 25


# A model's attention


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary"])
def test_the_weights_of_a_model_are_those_it_computes_with(position):
    model = noisy_gpt(tiny_config(position=position, n_head=2))
    idx = torch.randint(11, (3, 7))
    caught = []
    catch = lambda module, inputs, output: caught.append((inputs[0], output))
    hooks = [block.attention.register_forward_hook(catch) for block in model.blocks]
    layers = toy.weights_of_all_heads(model, idx)
    for hook in hooks:
        hook.remove()
    assert len(layers) == len(model.blocks) == len(caught)
    for block, weights, (x, output) in zip(model.blocks, layers, caught):
        assert weights.shape == (3, 2, 7, 7)
        v = block.attention.qkv(x)[..., 32:]                        # (3, 7, 48) -> (3, 7, 16)
        v = v.view(3, 7, 2, 8).transpose(1, 2)                      # (3, 7, 16) -> (3, 2, 7, 8)
        result = block.attention.proj((weights @ v).transpose(1, 2).reshape(3, 7, 16))
        torch.testing.assert_close(result, output, atol=1e-5, rtol=1e-4)


def test_looking_leaves_the_model_as_it_was():
    model = noisy_gpt(tiny_config(dropout=0.5)).train()
    idx = torch.randint(11, (1, 5))
    first, again = toy.weights_of_all_heads(model, idx), toy.weights_of_all_heads(model, idx)
    assert all(torch.equal(a, b) for a, b in zip(first, again))     # without dropout
    with pytest.raises(gpt.UserError):
        toy.weights_of_all_heads(model, torch.randint(11, (1, 9)))  # the context is 8
    assert model.training and not any(block.attention._forward_pre_hooks for block in model.blocks)
    toy.weights_of_all_heads(model.eval(), idx)
    assert not model.training


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


def test_the_quick_run(run_toy):
    code, out, err = run_toy("--quick", "--text", "cats.txt")
    assert (code, err) == (0, "")
    assert is_plain(out)
    assert out.count(": the same numbers.") == 2 and "9. The comparison" not in out
    assert out.index("1. Tensors") < out.index("6. Version 4") < out.index("8. Does")
    peeked = float(re.search(r"mean loss is (\S+) at all places", out)[1])
    masked = float(re.search(r"as if it had to write: (\S+)\.\n", out)[1])
    assert peeked < 0.05 and masked > 1
    same = re.findall(r"^(\S+) .*differs from version 4 by at most (\S+)$", out, re.MULTILINE)
    assert [name for name, _ in same] == ["F.scaled_dot_product_attention", "one_head"]
    assert all(float(difference) < 1e-6 for _, difference in same)
    before, after = out.split("What the r receives, with positions:")
    received = [line.split("'")[2].split() for part in (before, after) for line in part.split("\n")
                if re.match("    in '", line)]
    assert received[0] == received[1] and received[2] != received[3]


def test_only_the_quick_run_leaves_out_the_comparison(run_toy, monkeypatch):
    for name in ("why_mask", "show_comparison"):                        # these two train models
        monkeypatch.setattr(toy, name, lambda *_, name=name: print(name))
    _, quick, _ = run_toy("--quick", "--text", "cats.txt")
    code, out, err = run_toy("--text", "cats.txt")
    assert (code, err) == (0, "") and "why_mask" in quick
    assert out == quick + "\n9. The comparison\n-----------------\nshow_comparison\n"


def test_a_reader_that_leaves_ends_the_run_quietly(command):
    script = f"{sys.executable} {ROOT / 'attention_toy.py'} --quick --text cats.txt | head -n 3"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], cwd=command.folder,
                          capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (141, b"") and done.stdout.count(b"\n") == 3


def test_a_model_is_shown_head_by_head(run_toy):
    model, tokenizer = save_model("small")
    code, out, err = run_toy("--model", "small", "--prompt", r"The cat\nThe")
    assert (code, err) == (0, "")
    assert is_plain(out) and r"data/small.pt reads 'The cat\nThe'." in out
    heads = heads_in(out)
    assert len(heads) == 4
    tokens = [label.ljust(2) for label in ["T", "h", "e", "␣", "c", "a", "t", "\\n", "T", "h", "e"]]
    for (top, *rows), words in heads:
        assert top == ("    " + "".join(tokens)).rstrip()
        assert [row[:2] for row in rows] == tokens
        assert all(CELLS.match(row[4:]) and len(row) <= 4 + 2 * t
                   for t, row in enumerate(rows, start=1))
        assert re.fullmatch(r"looks \d+\.\d back on average; \d+% to the previous character, "
                            r"\d+% to the first", words)
    weights = toy.weights_of_all_heads(model, torch.tensor([tokenizer.encode("The cat\nThe")]))
    for (picture, words), shown in zip(heads, [*weights[0][0], *weights[1][0]]):
        assert picture == toy.picture(shown, "The cat\nThe").split("\n")
        assert words == toy.in_words(shown)


def test_a_model_has_a_name_and_a_path(run_toy):
    save_model("small")
    by_name = run_toy("--model", "small")
    assert by_name[0] == 0 and by_name == run_toy("--model", "data/small.pt")


def test_a_long_prompt_still_fits(run_toy):
    save_model("small")
    code, out, err = run_toy("--model", "small", "--prompt", TEXT[:50].replace("\n", r"\n"))
    assert (code, err) == (0, "")
    assert is_plain(out) and "the last 36 of 50 characters" in out
    heads = heads_in(out)
    assert len(heads) == 4
    for (top, *rows), _ in heads:
        assert top == "    " + "".join(map(toy.label, TEXT[14:50])).rstrip()
        assert len(rows) == 36 and all(CELLS.match(row[4:]) for row in rows)


@pytest.mark.parametrize("text, block_size, prompt", [
    ("ROMEO:\nBut soft, what light", 50, r"'ROMEO:\\nBut soft'"),
    ("ROMEO:\nBut soft, what light", 8, r"'ROMEO:\\nB'"),           # no more than the context
    ("banana", 50, "'[abn]{15}'"), ("banana", 2, "'[abn]{2}'"), ("\n", 50, r"'(\\n){15}'")])
def test_without_a_prompt_a_model_reads_what_it_can(run_toy, text, block_size, prompt):
    save_model("small", text, block_size=block_size)
    code, out, err = run_toy("--model", "small")
    assert (code, err) == (0, "")
    assert is_plain(out) and re.search(f"data/small.pt reads {prompt}", out)


def test_a_name_cannot_write_to_the_terminal(run_toy):
    save_model("sm\x1b[2Jall")
    code, out, err = run_toy("--model", "sm\x1b[2Jall")
    assert (code, err) == (0, "")
    assert is_plain(out) and r"data/sm\x1b[2Jall.pt reads" in out


@pytest.mark.parametrize("prompt, says", [("The bög", "'ö'"), ("T", "2 characters"),
                                          ("The " * 20, "80 characters; this model can look at 50"),
                                          ("", "2 characters")])
def test_a_prompt_that_cannot_be_read_gets_one_line(run_toy, prompt, says):
    save_model("small")
    assert is_one_line(run_toy("--model", "small", "--prompt", prompt), says)


def test_a_model_that_has_no_pictures_gets_one_line(run_toy):
    save_model("pieces", merges=[(104, 101)])
    assert is_one_line(run_toy("--model", "pieces"), "data/pieces.pt reads pieces of words")
    save_model("short", block_size=1)
    assert is_one_line(run_toy("--model", "short"), "data/short.pt looks at one character")


def test_a_bad_checkpoint_gets_one_line(run_toy):
    save_model("small")
    assert is_one_line(run_toy("--model", "nowhere.pt"), "there is no run nowhere.pt", "small")
    assert is_one_line(run_toy("--model", "cats.txt"), "cats.txt is no whole checkpoint")


@pytest.mark.parametrize("arguments, says", [
    (["--prompt", "The"], "--model"), (["--model", "a.pt", "--quick"], "without --quick"),
    (["--model", "a.pt", "--text", "b"], "without --quick"), (["--text", "nowhere.txt"], "nowhere"),
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
