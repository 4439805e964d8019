"""Chapters 0 to 3, and subwords: importing, hyperparameters, where the text comes from, tokens, batches."""

import dataclasses
import hashlib
import math
import os
import random
import subprocess
import sys
from collections import Counter
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import requests
import torch
from conftest import ROOT, TEXT, serving

import gpt

# Importing

IMPORT = """
import os, random, signal, sys, warnings, requests     # whose urllib3 has a filter of its own

def state():
    return {"filters": list(warnings.filters), "showwarning": warnings.showwarning, "arguments": sys.argv,
            "errors": sys.stdout.errors,
            "hooks": (sys.excepthook, sys.unraisablehook), "recursion": sys.getrecursionlimit(),
            "random": random.getstate(), "environment": dict(os.environ), "folder": (os.getcwd(), os.listdir()),
            "signals": {number: signal.getsignal(number) for number in signal.valid_signals()}}

before, after = state(), __import__("gpt") and state()
for name in before:
    assert before[name] == after[name], (name, before[name], after[name])

import torch                                            # its state must be that of a new process
assert torch.initial_seed() > 2**32                     # not one that somebody chose; and nothing was drawn
assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(torch.initial_seed()).get_state())
assert torch.get_default_dtype() == torch.float32 and torch.get_default_device().type == "cpu"
assert torch.is_grad_enabled() and not torch.are_deterministic_algorithms_enabled()
assert torch.tensor(1e-39) / 2 > 0                      # denormal numbers are kept
"""


def test_importing_gpt_changes_nothing_and_prints_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", IMPORT], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True)
    assert (done.stderr, done.stdout, done.returncode) == ("", "", 0)


# 0. Hyperparameters


def test_hyperparameters_are_frozen():
    config = gpt.Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_embd = 256
    with pytest.raises(ValueError, match="n_embd=130 must be a multiple of n_head=4"):
        gpt.Config(n_embd=130)
    with pytest.raises(ValueError, match="multiple of n_head=0"):
        gpt.Config(n_head=0)
    assert dataclasses.replace(config, n_embd=256) == gpt.Config(n_embd=256) != config
    assert hash(config) == hash(gpt.Config()) and gpt.check_config(config) is config


@pytest.mark.parametrize("settings, words", [
    ({"n_layer": 0}, "n_layer .* at least 1 .* 0"), ({"block_size": -3}, "block_size .* -3"),
    ({"position": "absolute"}, "position .* learned, sinusoidal or rotary, not 'absolute'"),
    ({"position": "rotary", "n_embd": 12}, "pairs .*n_embd=12, n_head=4 .* 3$"),
    ({"n_head": 1, "n_embd": 33}, "pairs .*n_embd=33, n_head=1 .* 33$"),
    ({"dropout": 1.0}, "dropout .* below 1, not 1.0"), ({"dropout": math.nan}, "dropout .* nan"),
    ({"learning_rate": 0.0}, "learning_rate .* 0.0"), ({"seed": -1}, "seed .* at least 0 .* -1"),
    ({"learning_rate": math.inf}, "learning_rate .* inf"), ({"grad_clip": 0.0}, "grad_clip .* 0.0"),
    ({"max_steps": 2**32}, "max_steps .* below 4294967296, not 4294967296"),
    ({"batch_size": 0}, "batch_size .* at least 1"), ({"weight_decay": -0.1}, "weight_decay .* -0.1"),
])
def test_a_hyperparameter_that_cannot_work_is_named(settings, words):
    with pytest.raises(ValueError, match=words):
        gpt.check_config(gpt.Config(**settings))


# 1. Text

BODY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 3000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers well or badly, as the path says."""

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/silent":
            return self.server.over.wait(10)
        if self.path in ("/missing", "/broken"):
            return self.send_error(404 if self.path == "/missing" else 503)
        others = {"/altered": BODY[:-1] + b"!", "/empty": b"", "/login": b"<html>Please log in</html>"}
        body = others.get(self.path, BODY)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/cut" else body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(in_tmp, monkeypatch):
    """A real HTTP server on loopback as the place where Shakespeare comes from; .send(how) chooses its answer."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(gpt, "SHAKESPEARE_SHA256", SHA256)
    with serving(Handler) as server:
        server.send = lambda how: monkeypatch.setattr(gpt, "SHAKESPEARE_URL", f"{server.url}/{how}")
        server.send("good")
        yield server


def keep(content):
    """Put this content where Shakespeare is kept; returns the path."""
    path = Path("data/tinyshakespeare.txt")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_shakespeare_is_downloaded_once_and_then_read_from_the_disk(server):
    for _ in range(2):
        assert gpt.load_shakespeare() == BODY.decode()
        assert gpt.load_text() == ("shakespeare", BODY.decode())
    assert server.asked == ["/good"]
    assert [path.read_bytes() for path in Path("data").iterdir()] == [BODY]


@pytest.mark.parametrize("content", [BODY, BODY.replace(b"\n", b"\r\n")], ids=["as it is", "with CRLF"])
def test_an_intact_file_is_read_from_the_disk(server, content):
    path = keep(content)
    assert gpt.load_shakespeare() == BODY.decode()
    assert path.read_bytes() == content and server.asked == []


@pytest.mark.parametrize("content", [BODY[:-1] + b"!", BODY[:-100], b"", BODY + b"\n", b"\xff\xfe" + BODY])
def test_an_altered_file_on_the_disk_is_downloaded_again(server, content):
    path = keep(content)
    assert gpt.load_shakespeare() == BODY.decode()
    assert path.read_bytes() == BODY and server.asked == ["/good"]


@pytest.mark.parametrize("how", ["missing", "broken", "altered", "empty", "login", "cut", "silent"])
@pytest.mark.parametrize("before", [None, b"what was there before"])
def test_wrong_content_is_refused_and_not_kept(server, monkeypatch, how, before):
    server.send(how)
    files = [] if before is None else [keep(before)]
    request = requests.Session.request

    def impatient(session, *arguments, timeout, **options):             # there must be a timeout
        return request(session, *arguments, timeout=0.2 if how == "silent" else timeout, **options)

    monkeypatch.setattr(requests.Session, "request", impatient)
    with pytest.raises(OSError):
        gpt.load_shakespeare()
    assert server.asked == [f"/{how}"]
    assert [*Path(".").rglob("*.*")] == files and [path.read_bytes() for path in files] == [before] * len(files)


def test_an_unreachable_server_is_an_oserror(server, monkeypatch):
    monkeypatch.setattr(gpt, "SHAKESPEARE_URL", "http://127.0.0.1:9/")
    with pytest.raises(OSError):
        gpt.load_shakespeare()


@pytest.mark.parametrize("how", ["missing", "login"])
def test_without_the_download_the_manual_is_the_text(server, capsys, how):
    server.send(how)
    name, text = gpt.load_text()
    assert (name, text, server.asked) == ("manual", "".join(topics.values()), [f"/{how}"])
    told = capsys.readouterr().out
    assert told.count("\n") == 1 and gpt.SHAKESPEARE_URL in told and "tinyshakespeare.txt" in told


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch, error, broken):
    path = tmp_path / "new" / "file"
    with gpt.atomic_write(path) as file:
        file.write(b"before")
        assert not path.exists()
    assert path.read_bytes() == b"before"
    with pytest.raises(error), gpt.atomic_write(path) as file:
        file.write(b"half of what")
        raise error
    with monkeypatch.context() as patch:
        patch.setattr(gpt.os, broken, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left on device"), gpt.atomic_write(path) as file:
            file.write(b"half of what")
    assert path.read_bytes() == b"before" and list(path.parent.iterdir()) == [path]
    with gpt.atomic_write(path) as file:
        file.write(b"after")
    assert path.read_bytes() == b"after" and list(path.parent.iterdir()) == [path]


def test_a_text_of_ones_own_has_new_lines_and_no_byte_order_mark(tmp_path):
    file = tmp_path / "my own.txt"
    file.write_bytes(b"\xef\xbb\xbfna\xc3\xafve\r\nline\r\n")
    assert gpt.load_text(file) == ("my own", "naïve\nline\n")


@pytest.mark.parametrize("content, words", [
    ("naïve".encode("latin-1"), "is not UTF-8"), ("naive".encode("utf-16"), "is not UTF-8"),
    ("naive".encode("utf-16-le"), "is not UTF-8"), (b"", "is empty")])
def test_a_text_of_ones_own_must_be_utf8(tmp_path, content, words):
    (tmp_path / "own.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"own.txt {words}"):
        gpt.load_text(tmp_path / "own.txt")


# 2. Tokens


def test_any_text_comes_back_from_its_tokens():
    text = "Zürich 東京 🙂\r\n\t\0 done"
    tokenizer = gpt.build_char_tokenizer(text)
    assert tokenizer.vocab_size == len(set(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert sorted(set(tokenizer.encode(text))) == list(range(tokenizer.vocab_size))
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


def test_characters_that_are_not_in_the_vocabulary_are_named():
    with pytest.raises(ValueError, match=r"'abc' has no \['z', 'é'\]"):
        gpt.build_char_tokenizer("cab").encode("aézé")


@pytest.mark.parametrize("build", [
    gpt.build_char_tokenizer, lambda text: gpt.BPETokenizer(gpt.train_bpe(text, 259))], ids=["char", "bpe"])
def test_a_tokenizer_can_be_made_again_from_its_vocabulary(build):
    tokenizer = build("the cat sat on the mat")
    again = type(tokenizer)(tokenizer.vocabulary)
    assert again.vocab_size == tokenizer.vocab_size
    ids = tokenizer.encode("that hat")
    assert again.encode("that hat") == ids and again.decode(ids) == "that hat"


# Appendix: Subwords

@pytest.fixture(scope="module")
def bpe():
    return gpt.BPETokenizer(gpt.train_bpe(TEXT, 290))


def plain_bpe(text, vocab_size):
    """The definition, with everything counted anew for each token: (merges, the text in parts)."""
    words = [[bytes([byte]) for byte in word.encode()] for word in gpt.split_pattern().findall(text)]
    merges = []
    while 256 + len(merges) < vocab_size:
        counts = Counter(pair for word in words for pair in pairwise(word))
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i:i + 2] = [word[i] + word[i + 1]]
                i += 1
    return merges, [part for word in words for part in word]


def test_bpe_knows_the_textbook_example():
    merges = gpt.train_bpe("aaabdaaabac", 259)
    assert merges == [(b"a", b"a"), (b"aa", b"a"), (b"aaa", b"b")]
    tokenizer, (a, b, c, d) = gpt.BPETokenizer(merges), b"abcd"
    assert tokenizer.encode("aaabdaaabac") == [258, d, 258, a, c]
    assert tokenizer.decode([258, d]) == "aaabd"


@pytest.mark.parametrize("text, vocab_size", [
    (TEXT[:1500], 275), ("aaaa aaa aaaaa ababab bababa aab " * 2, 261), ("the then there the other the " * 3, 263),
    ("Zürich 東京 🙂 東京東 Zürich ü" * 3, 270), ("".join(topics.values())[:6000], 300),
    ("".join(random.Random(0).choices("ab ", k=400)), 275), ("".join(random.Random(1).choices("aab ", k=400)), 275)])
def test_bpe_does_what_its_definition_says(text, vocab_size):
    merges, parts = plain_bpe(text, vocab_size)
    for _ in range(2):
        assert gpt.train_bpe(text, vocab_size) == merges
    tokenizer = gpt.BPETokenizer(merges)
    assert [tokenizer.pieces[i] for i in tokenizer.encode(text)] == parts


@pytest.mark.parametrize("vocab_size", [256, 257, 265, 290, 293])
def test_the_vocabulary_has_the_size_that_was_asked_for(vocab_size):
    tokenizer = gpt.BPETokenizer(gpt.train_bpe(TEXT, vocab_size))
    assert tokenizer.vocab_size == len(set(tokenizer.pieces.values())) == vocab_size
    assert sorted(tokenizer.pieces) == list(range(vocab_size))
    assert set(tokenizer.encode(TEXT)) <= set(range(vocab_size))


def test_two_merges_that_make_the_same_bytes_make_one_token():
    tokenizer = gpt.BPETokenizer([(b"b", b"c"), (b"a", b"bc"), (b"a", b"b"), (b"ab", b"c"), (b"x", b"abc")])
    assert tokenizer.vocab_size == 260 and sorted(tokenizer.pieces) == list(range(260))
    assert tokenizer.encode("abc xabc ab") == [257, 32, 259, 32, 258]
    assert tokenizer.decode(range(256, 260)) == "bcabcabxabc"


def random_text(seed, length):
    """Characters of all kinds: ASCII, spaces, Latin, Greek, Chinese, emoji, control characters."""
    draw = random.Random(seed)
    kinds = [range(32, 127), range(9, 14), [32], range(0xA0, 0x180), range(0x370, 0x400), range(0x4E00, 0x4E50),
             range(0x1F600, 0x1F610), range(0, 9), [0x2028, 0xFEFF, 0xFFFD, 0x301]]
    return "".join(chr(draw.choice(draw.choice(kinds))) for _ in range(length))


@pytest.mark.parametrize("seed", range(5))
def test_bpe_gives_any_text_back(seed, bpe):
    text = random_text(seed, 500)
    assert "".join(gpt.split_pattern().findall(text)) == text               # no character is lost between words
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text and all(0 <= i < bpe.vocab_size for i in ids)
    fitted = gpt.BPETokenizer(gpt.train_bpe(text, 270))
    assert fitted.decode(fitted.encode(text)) == text and len(fitted.encode(text)) < len(text.encode())


def test_words_are_cut_as_gpt_2_cuts_them():
    assert gpt.split_pattern().findall("I've 2  cats.") == ["I", "'ve", " 2", " ", " cats", "."]
    assert gpt.BPETokenizer([(b"a", b"1")]).encode("a1") == [97, 49]        # a letter and a digit: two words


def test_no_token_reaches_across_words(bpe):
    for i in range(256, bpe.vocab_size):
        assert len(gpt.split_pattern().findall(bpe.decode([i]))) == 1
    assert bpe.pieces[max(bpe.pieces, key=lambda i: len(bpe.pieces[i]))] == b" number"


def test_bpe_names_what_it_cannot_do_and_takes_what_is_no_utf8(bpe):
    with pytest.raises(ValueError, match="too short for vocab_size=400; .* 259 at most"):
        gpt.train_bpe("to be or not to be", 400)
    with pytest.raises(ValueError, match="too short"):
        gpt.train_bpe("", 257)
    assert bpe.decode(bpe.encode("\ud800 lone")) == "? lone"                # half of a character
    assert bpe.decode([0xE6, 0x9D]) == "\ufffd"                             # two bytes of three


# 3. Batches


@pytest.mark.parametrize("length", [0, 1, 999_999, 1_000_000, 1_000_001, 2_000_003])
def test_of_a_whole_text_nothing_is_lost(length):
    characters = bytes(range(97, 120)).decode()                         # a prime number of them
    text, tokenizer = (characters * (length // 23 + 1))[:length], gpt.CharTokenizer(characters)
    tokens = gpt.encode_text(text, tokenizer)
    assert tokens.shape == (length,) and tokens.dtype == torch.int32
    assert torch.equal(tokens, torch.arange(length, dtype=torch.int32) % 23)


def test_a_whole_text_in_subwords_comes_back():
    text = "-=-=-=-=-=.. " * 77_000                                     # a million and more
    tokenizer = gpt.BPETokenizer(gpt.train_bpe(text[:100], 260))
    tokens = gpt.encode_text(text, tokenizer)
    assert len(tokens) < 0.7 * len(text) and tokenizer.decode(tokens.tolist()) == text


def test_split_is_nine_to_one_and_loses_nothing():
    tokens = torch.arange(1_115_394)
    train_data, val_data = gpt.split(tokens)
    assert (len(train_data), len(val_data)) == (1_003_854, 111_540)     # as for Tiny Shakespeare
    assert torch.equal(torch.cat((train_data, val_data)), tokens)
    assert gpt.split("0123456789" * 2) == ("0123456789" + "01234567", "89")


@pytest.mark.parametrize("length", [0, 1, 9, 10, 11, 1_999_990, 2_000_000, 2_000_010, 5_000_000])
def test_no_more_is_held_out_than_serves(length):
    train_part, val_part = gpt.split(range(length))
    assert [*train_part[-3:], *val_part] == [*range(length)][max(0, len(train_part) - 3):]
    assert train_part == range(len(train_part))
    assert len(val_part) == min(-(-length // 10), 200_000)


def test_batches_are_shifted_by_one_and_depend_on_seed_and_step_alone():
    config = gpt.Config(batch_size=5, block_size=7, seed=3)
    data = torch.randperm(1000)
    x, y = gpt.get_batch(data, 11, config)
    assert x.shape == y.shape == (5, 7)
    where = {token: i for i, token in enumerate(data.tolist())}
    for row_x, row_y in zip(x.tolist(), y.tolist()):
        assert [where[token] for token in row_x] == list(range(where[row_x[0]], where[row_x[0]] + 7))
        assert row_x[1:] == row_y[:-1] and where[row_y[-1]] == where[row_x[-1]] + 1
    torch.manual_seed(99)
    assert torch.equal(x, gpt.get_batch(data, 11, config)[0])
    assert not torch.equal(x, gpt.get_batch(data, 12, config)[0])
    other = gpt.Config(batch_size=5, block_size=7, seed=4)
    assert not torch.equal(x, gpt.get_batch(data, 11, other)[0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_batches_are_of_large_integers_whatever_the_data_are(dtype):
    config, data = gpt.Config(batch_size=5, block_size=7), torch.arange(256)
    for batch, same in zip(gpt.get_batch(data.to(dtype), 3, config), gpt.get_batch(data, 3, config)):
        assert batch.dtype == torch.int64 and torch.equal(batch, same)


def test_batches_reach_the_first_and_the_last_token():
    config = gpt.Config(batch_size=64, block_size=4)
    batches = [gpt.get_batch(torch.arange(10), step, config) for step in range(10)]
    assert {x[i, 0].item() for x, _ in batches for i in range(64)} == set(range(6))
    assert max(y.max().item() for _, y in batches) == 9


def test_batches_neither_use_nor_change_the_global_random_numbers():
    config, data = gpt.Config(batch_size=5, block_size=7), torch.arange(256)
    torch.manual_seed(1)
    before, batch = torch.get_rng_state(), gpt.get_batch(data, 3, config)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert all(map(torch.equal, batch, gpt.get_batch(data, 3, config)))


def test_a_text_that_is_too_short_for_the_context_is_refused():
    config = gpt.Config(batch_size=2, block_size=8)
    assert gpt.get_batch(torch.arange(9), 0, config)[1][0].tolist() == list(range(1, 9))
    with pytest.raises(ValueError, match="8 tokens are too few to train on with block_size=8"):
        gpt.get_batch(torch.arange(8), 0, config)
