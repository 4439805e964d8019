"""Appendices D to F: pieces of words, the demos and their checks, the sizes."""

import math
import random
import re

import pytest
import torch
from conftest import TEXT, tiny_config

import attention_toy
import gpt

pytestmark = pytest.mark.usefixtures("short_baseline")
BPE = gpt.build_bpe_tokenizer(TEXT, 290)


def random_text(seed, length):
    """Characters of all kinds: ASCII, spaces, Latin, Greek, Chinese, emoji, control characters."""
    draw = random.Random(seed)
    kinds = [range(32, 127), range(9, 14), [32], range(0xA0, 0x180), range(0x370, 0x400), range(0x4E00, 0x4E50),
             range(0x1F600, 0x1F610), range(0, 9), [0x2028, 0xFEFF, 0xFFFD, 0x301]]
    return "".join(chr(draw.choice(draw.choice(kinds))) for _ in range(length))


# Pieces of words


def test_bpe_knows_the_textbook_example():
    tokenizer = gpt.build_bpe_tokenizer("aaabdaaabac", 259)
    a, b, c, d = b"abcd"
    assert tokenizer.merges == [(a, a), (a, b), (256, 257)]
    assert tokenizer.encode("aaabdaaabac") == [258, d, 258, a, c]
    assert tokenizer.decode([258, d]) == "aaabd"


@pytest.mark.parametrize("seed", range(10))
def test_bpe_gives_any_text_back(seed):
    text = random_text(seed, 500)
    assert "".join(gpt.WORD.findall(text)) == text                      # no character is lost between words
    ids = BPE.encode(text)
    assert BPE.decode(ids) == text and all(0 <= i < BPE.vocab_size for i in ids)
    fitted = gpt.build_bpe_tokenizer(text, 270)
    assert fitted.decode(fitted.encode(text)) == text


def slow_bpe(text, vocab_size):
    """The definition, with everything counted anew for each token."""
    words = [list(word.encode()) for word in re.findall(gpt.WORD, text)]
    merges = []
    while 256 + len(merges) < vocab_size:
        pairs = [pair for word in words for pair in zip(word, word[1:])]
        best = min(set(pairs), key=lambda pair: (-pairs.count(pair), pair))
        merges.append(best)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i:i + 2] = [255 + len(merges)]
                i += 1
    return merges, [i for word in words for i in word]


@pytest.mark.parametrize("text", [TEXT[:1500], "aaaa aaa aaaaa ababab bababa aab " * 2, "the then there the other the " * 3])
def test_bpe_does_what_its_definition_says(text):
    vocab_size = 275 if len(text) > 1000 else 261
    merges, ids = slow_bpe(text, vocab_size)
    tokenizer = gpt.build_bpe_tokenizer(text, vocab_size)
    assert tokenizer.merges == merges and tokenizer.encode(text) == ids


def test_no_token_reaches_across_words():
    for i in range(256, BPE.vocab_size):
        assert len(gpt.WORD.findall(BPE.decode([i]))) == 1
    assert gpt.BPETokenizer([(97, 49)]).encode("a1") == [97, 49]       # a letter and a digit: two words
    assert BPE.decode([max(range(BPE.vocab_size), key=lambda i: len(BPE.bytes[i]))]) == " number"


def test_bpe_names_what_it_cannot_do():
    with pytest.raises(ValueError, match="too short for vocab_size=400"):
        gpt.build_bpe_tokenizer("to be or not to be", 400)
    with pytest.raises(ValueError, match="too short"):
        gpt.build_bpe_tokenizer("", 257)
    with pytest.raises(ValueError, match="id 290 .* 0 to 289"):
        BPE.decode([290])
    assert BPE.decode([0xE6, 0x9D]) == "\ufffd"                         # two bytes of three are no character


def test_a_checkpoint_keeps_the_pieces(tmp_path):
    config = tiny_config(tokenizer="bpe", vocab_size=BPE.vocab_size)
    model = gpt.GPT(config)
    gpt.save_checkpoint(tmp_path / "a.pt", config, BPE, {"model": model.state_dict(), "write_with": "model"})
    loaded, tokenizer = gpt.load_checkpoint(tmp_path / "a.pt")
    assert loaded.config == config and tokenizer.encode(TEXT) == BPE.encode(TEXT)


# The demos

SMALL_CODER = ["--max_steps", 30, "--eval_interval", 15, "--n_embd", 16, "--n_layer", 1, "--n_head", 2, "--vocab_size",
               300, "--block_size", 32]


@pytest.fixture
def small_library(monkeypatch):
    """Three modules in place of the hundreds that `coder` reads."""
    monkeypatch.setattr(gpt, "FUNCTION_TOKENS", 40)
    monkeypatch.setattr(gpt, "PYTHON_FILES", "json/*.py textwrap.py shlex.py copy.py heapq.py bisect.py reprlib.py")


@pytest.mark.parametrize("name", ["hello", "count", "random"])
def test_a_demo_holds_in_full(in_tmp, capsys, name):
    assert gpt.main([name]) == 0
    output = capsys.readouterr().out
    findings = output.split("The check\n---------\n")[1]
    assert findings.startswith("held: ") and "FAILED" not in findings and findings.count("held: ") in (1, 5)
    assert max(map(len, output.splitlines())) < 80
    if name == "count":
        assert "4,000 of 4,000 characters are right, 100%" in " ".join(findings.split())
        assert "4,688 parameters" in output
    prompt = gpt.DEMOS[name].prompt
    assert gpt.main(["sample", name, "--prompt", prompt, "--tokens", "20", "--temperature", "0"]) == 0
    written = capsys.readouterr().out
    assert written.startswith(prompt) and len(written) == len(prompt) + 20 + 1
    if name == "hello":
        assert written.startswith("hello world\nhello worl")


def test_coder_runs_samples_and_resumes(in_tmp, small_library, capsys):
    code = gpt.main(["coder", *map(str, SMALL_CODER)])
    output = capsys.readouterr().out
    assert code == 1                                                    # 30 steps do not make a programmer
    assert "300 tokens: the 256 bytes, and 44 that were made" in output and "bytes per token" in output
    assert "held: held-out files cost" in output or "FAILED: held-out files cost" in output
    share = re.search(r"of \d+ functions .* ([\d.]+)% as the GPT completes them, ([\d.]+)% as", " ".join(output.split()))
    assert all(0 <= float(percent) <= 100 for percent in share.groups())
    assert gpt.main(["sample", "coder", "--prompt", "def é", "--tokens", "5", "--seed", "1"]) == 0
    assert capsys.readouterr().out.startswith("def é")
    gpt.main(["coder", *map(str, SMALL_CODER), "--max_steps", "45", "--resume"])
    assert "going on after step 30" in capsys.readouterr().out
    assert gpt.main(["coder", *map(str, SMALL_CODER), "--vocab_size", "301", "--resume"]) == 2
    assert "vocab_size=300, not 301" in capsys.readouterr().err


def untrained(name, **settings):
    """(model, bigram, tokenizer, val_text) of a demo before anything was learned."""
    demo = gpt.DEMOS[name]
    train_text, val_text = demo.texts()
    tokenizer = (gpt.build_char_tokenizer(train_text + val_text) if demo.config.tokenizer == "char" else
                 gpt.build_bpe_tokenizer(train_text, 300))
    torch.manual_seed(0)
    config = gpt.replace(demo.config, vocab_size=tokenizer.vocab_size, **settings)
    return gpt.GPT(config), gpt.BigramLanguageModel(tokenizer.vocab_size), tokenizer, val_text


@pytest.mark.parametrize("name", gpt.DEMOS)
def test_each_check_says_no_to_an_untrained_model(name, small_library, capsys):
    findings = gpt.DEMOS[name].check(*untrained(name))
    assert not gpt.show_check(findings)
    assert "FAILED: " in capsys.readouterr().out


def held(findings, word):
    """Whether the finding whose text begins with `word` held."""
    return next(held for held, what in findings if what.startswith(word))


def test_the_architecture_check_tells_what_is_wrong(monkeypatch):
    model, *others = untrained("random")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))          # the usual start has zeros
    check = gpt.DEMOS["random"].check
    findings = check(model, *others)
    assert all(held(findings, word) for word in ("shapes", "causality", "gradients", "learning"))
    wide = model.blocks[1].feed_forward[-1].weight
    before = wide.data.clone()
    wide.data.zero_()                                                   # now nothing before it has a gradient
    model.lm_head.weight.data *= 20                                     # sure of itself, and wrong
    findings = check(model, *others)
    assert not held(findings, "gradients") and not held(findings, "honesty")
    wide.data = before
    model.lm_head.weight.data /= 20
    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(gpt.F, "scaled_dot_product_attention",
                        lambda *qkv, is_causal, dropout_p: attention(*qkv, dropout_p=dropout_p))
    assert not held(check(model, *others), "causality")


def test_the_pattern_check_counts_right_characters():
    class Knows(torch.nn.Module):
        """After a comes b, after b comes c, after c comes d, after d comes a."""

        vocab_size, block_size = 4, 8

        def __init__(self):
            super().__init__()
            self.zero = torch.nn.Parameter(torch.zeros(()))

        def forward(self, idx, targets=None, cache=None):
            return torch.nn.functional.one_hot((idx + 1) % 4, 4).float() + self.zero, None

    tokenizer = gpt.CharTokenizer("abcd")
    assert gpt.check_pattern("abcd", Knows(), None, tokenizer, "")[0][0]
    (right, what), = gpt.check_pattern("abdc", Knows(), None, tokenizer, "")
    assert not right and "of 160 characters" in what


@pytest.mark.parametrize("text, function, correct", [
    ("def f(x):\n    return x\n\ndef g", "def f(x):\n    return x\n", True),
    ("    def f(self):\n        if self:\n            return 1\n\n    def g(self):\n", "def f(self):\n    if self:\n        return 1\n", True),
    ("def f(x):\n    return x +", "def f(x):\n", False),
    ("def f(x):\n    return (x\n    y = ", "def f(x):\n    return (x\n", False),
    ("def f(x):\nreturn x\n", "def f(x):\n", False),
    ("def f(x):", "\n", False), ("", "\n", False), ("x = 1\n", "x = 1\n", False),
    ("def f(x):\n    '''Say\n\n    so.'''\n", "def f(x):\n    '''Say\n\n    so.'''\n", True),
])
def test_a_function_is_cut_at_its_end_and_judged_by_python(text, function, correct):
    assert gpt.first_function(text) == function
    assert gpt.is_function(function) is correct


def test_the_library_is_whole_files_and_some_are_held_out():
    train_text, val_text = gpt.python_texts()
    names = gpt.PYTHON_FILES.split()
    assert names == sorted(set(names)) and not any("/test" in name or name.startswith("test") for name in names)
    assert 1e6 < len(train_text) and 0.05 < len(val_text) / len(train_text) < 0.2
    assert not any(paragraph in train_text for paragraph in val_text.split("\n\n") if len(paragraph) > 600)
    headers = re.findall(r"^ *def \w+\(.*\).*:(?=\n)", val_text, flags=re.MULTILINE)
    assert len(headers) > 200


# Any text in pieces of words


def test_any_text_can_be_read_in_pieces(in_tmp, capsys):
    (in_tmp / "cats.txt").write_text(TEXT)
    settings = ["--text", "cats.txt", "--tokenizer", "bpe", "--vocab_size", 285, "--n_layer", 1, "--n_embd", 16,
                "--block_size", 16, "--max_steps", 20]
    assert gpt.main(list(map(str, settings))) == 0
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("uniform"))
    train_text, val_text = gpt.split(TEXT)
    tokens = gpt.build_bpe_tokenizer(train_text, 285).encode(val_text)
    assert float(row[3]) == pytest.approx(math.log2(285) * len(tokens) / len(val_text), abs=1e-3)
    assert (in_tmp / "data" / "cats-gpt.txt").read_text()[0] == "\n"
    with pytest.raises(ValueError, match="cats.pt reads pieces of words"):
        attention_toy.show_model("data/cats.pt", "The cat")


def test_a_character_is_shown_when_its_bytes_are_whole(in_tmp, capsys, monkeypatch):
    config = tiny_config(tokenizer="bpe", vocab_size=290)
    gpt.save_checkpoint(in_tmp / "data" / "a.pt", config, BPE,
                        {"model": gpt.GPT(config).state_dict(), "write_with": "model"})
    ids = BPE.encode("é東🙂!")
    assert len(ids) == 10
    monkeypatch.setattr(gpt, "stream_tokens", lambda *_, **__: iter(torch.tensor(ids).view(-1, 1, 1)))
    assert gpt.main(["sample", "a", "--prompt", "x"]) == 0
    assert capsys.readouterr().out == "xé東🙂!\n"


# The sizes


@pytest.mark.parametrize("name", gpt.SIZES)
def test_the_parameters_of_a_size_are_those_of_the_built_model(name):
    config = gpt.Config(**gpt.SIZES[name])
    with torch.device("meta"):
        model = gpt.GPT(config)
    assert gpt.parameters_of(config) == gpt.count_parameters(model)


@pytest.mark.parametrize("settings", [{"position": "rotary"}, {"position": "sinusoidal"}, {"bias": False},
                                      {"tie_weights": True}])
def test_the_parameters_follow_the_settings(settings):
    config = tiny_config(**settings)
    assert gpt.parameters_of(config) == gpt.count_parameters(gpt.GPT(config))


def test_the_activations_are_what_autograd_keeps():
    config = tiny_config()
    model = gpt.GPT(config)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    x, y = torch.randint(11, (2, config.batch_size, config.block_size)).unbind()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x.clone(), y.clone())
    assert sum(storage.nbytes() for storage in kept.values()) == pytest.approx(gpt.activation_bytes(config), rel=0.02)


def test_the_flops_are_what_the_matrix_products_need():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = tiny_config(vocab_size=50)
    model = gpt.GPT(config)
    x, y = torch.randint(50, (2, config.batch_size, config.block_size)).unbind()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x, y)[1].backward()
    assert counter.get_total_flops() == gpt.training_flops(config)[0] * x.numel()


def test_sizes_are_shown_and_used(in_tmp, capsys):
    assert gpt.main(["sizes"]) == 0
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) < 90
    for name, size in gpt.SIZES.items():
        rows = [line.split() for line in output.splitlines() if line.startswith(f"{name} ")]
        assert len(rows) == 3 and rows[0][6] == f"{gpt.parameters_of(gpt.Config(**size)):,}"
    (in_tmp / "cats.txt").write_text(TEXT)
    assert gpt.main(["--text", "cats.txt", "--size", "5k", "--max_steps", "2"]) == 0
    assert gpt.load_checkpoint("data/cats.pt")[0].config.n_embd == 16


@pytest.mark.parametrize("arguments, words", [
    (["helo"], "no demo helo, only hello, count, random, coder"), (["--size", "8M"], "7M, 11M"),
    (["hello", "--text", "cats.txt"], "leave out"), (["--vocab_size", "99"], "--tokenizer bpe"),
    (["--tokenizer", "bpe", "--vocab_size", "256"], "at least 257"), (["--tokenizer", "word"], "char or bpe"),
    (["hello", "--n_embd", "33"], "n_embd must be a multiple of n_head=2"),
    (["hello", "--position", "rotary", "--n_embd", "6"], "head size, n_embd / n_head, must be even"),
    (["count", "--block_size", "9000"], "block_size=9000 needs 9001"), (["sizes", "large"], "large"),
    (["hello", "--resume"], "there is no checkpoint data/hello.pt"),
])
def test_a_mistake_gets_one_line(in_tmp, capsys, arguments, words):
    try:
        code = gpt.main(arguments)
    except SystemExit as exit:
        code = exit.code
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and words in error.replace("'", "")
    assert list(in_tmp.iterdir()) == []


def test_a_failed_check_is_exit_code_1(in_tmp, capsys):
    assert gpt.main(["hello", "--max_steps", "1"]) == 1
    assert "FAILED: from each of the 12 places" in capsys.readouterr().out
