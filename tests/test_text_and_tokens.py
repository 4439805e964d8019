"""Chapters 1 to 3: where the text comes from, tokens, and batches."""

import hashlib
import time
from http.server import BaseHTTPRequestHandler

import pytest
import requests
import torch
from conftest import serving

import gpt

BODY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 3000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers well or badly, as the path says."""

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/silent":
            return self.server.over.wait(10)
        if self.path == "/broken" or self.path == "/flaky" and len(self.server.asked) == 1:
            return self.send_error(503)
        if self.path == "/missing":
            return self.send_error(404)
        body = {"/altered": BODY[:-1] + b"!", "/empty": b""}.get(self.path, BODY)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/cut" else body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    """A real HTTP server on loopback; .url is its address, .asked the paths it was asked for.

    .waits are the seconds that the client wanted to wait before it asked again; it need not.
    """
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Handler) as server:
        server.waits = []
        monkeypatch.setattr(time, "sleep", server.waits.append)
        yield server


@pytest.fixture
def short_wait(monkeypatch):
    """A download waits for the silent path 0.2 s at a time; a list of how long it wanted to wait."""
    get, timeouts = requests.Session.get, []

    def impatient_get(session, url, timeout, **options):
        timeouts.append(timeout)
        return get(session, url, timeout=0.2 if url.endswith("/silent") else timeout, **options)

    monkeypatch.setattr(requests.Session, "get", impatient_get)
    return timeouts


def test_a_good_download_is_kept_whole(server, tmp_path):
    gpt.download(server.url + "/good", tmp_path / "new" / "text.txt", SHA256)
    assert (tmp_path / "new" / "text.txt").read_bytes() == BODY
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["text.txt"]
    assert server.asked == ["/good"]


def test_a_download_replaces_the_old_file(server, tmp_path):
    (tmp_path / "text.txt").write_text("what was there before")
    gpt.download(server.url + "/flaky", tmp_path / "text.txt", SHA256)      # the second try succeeds
    assert server.asked == ["/flaky", "/flaky"]
    assert (tmp_path / "text.txt").read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize("path, times, words", [
    ("/missing", 1, "404"), ("/altered", 1, "SHA-256"), ("/empty", 1, "SHA-256"),
    ("/cut", 1, "IncompleteRead|SHA-256"), ("/broken", 3, "503"), ("/silent", 3, "timed out")])
def test_a_bad_download_leaves_the_old_file_and_nothing_else(server, short_wait, tmp_path, path,
                                                             times, words):
    file = tmp_path / "text.txt"
    file.write_text("what was there before")
    with pytest.raises(OSError, match=words):
        gpt.download(server.url + path, file, SHA256)
    assert file.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [file]
    assert server.asked == [path] * times
    assert short_wait == [5] and server.waits == ([1.0] if times == 3 else [])


def test_an_unreachable_server_is_an_oserror(server, tmp_path):
    with pytest.raises(OSError):
        gpt.download("http://127.0.0.1:9/", tmp_path / "text.txt", SHA256)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def local_shakespeare(server, in_tmp, monkeypatch):
    """The server as the place where Shakespeare comes from, if only at the second try."""
    monkeypatch.setattr(gpt, "SHAKESPEARE_URL", server.url + "/flaky")
    monkeypatch.setattr(gpt, "SHAKESPEARE_SHA256", SHA256)
    return server


def test_shakespeare_is_downloaded_once_and_then_read_from_the_disk(local_shakespeare):
    assert gpt.load_shakespeare() == BODY.decode()
    assert gpt.load_text() == ("shakespeare", BODY.decode())
    assert local_shakespeare.asked == ["/flaky", "/flaky"]


def test_an_altered_file_on_the_disk_is_downloaded_again(local_shakespeare, in_tmp):
    (in_tmp / "data").mkdir()
    (in_tmp / "data" / "tinyshakespeare.txt").write_bytes(BODY[:-1] + b"!")
    assert gpt.load_shakespeare() == BODY.decode()
    assert (in_tmp / "data" / "tinyshakespeare.txt").read_bytes() == BODY


def test_without_the_download_the_manual_is_the_text(local_shakespeare, monkeypatch, capsys):
    monkeypatch.setattr(gpt, "SHAKESPEARE_URL", local_shakespeare.url + "/missing")
    name, text = gpt.load_text()
    assert (name, local_shakespeare.asked) == ("manual", ["/missing"])
    assert "assert" in text and len(text) > 100_000
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert "HTTPError" in told and "/missing" in told and "tinyshakespeare.txt" in told


def test_own_text_keeps_its_line_ends_and_loses_its_byte_order_mark(tmp_path):
    file = tmp_path / "my own.txt"
    file.write_bytes(b"\xef\xbb\xbfna\xc3\xafve\r\nline\r\n")
    assert gpt.load_text(file) == ("my own", "naïve\r\nline\r\n")


def test_own_text_must_be_utf8(tmp_path):
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(gpt.UserError, match="latin.txt is not UTF-8: .* at byte 2"):
        gpt.load_text(tmp_path / "latin.txt")


def test_any_text_comes_back_from_its_tokens():
    text = "Zürich 東京 🙂\r\n\t\0 done"
    tokenizer = gpt.build_char_tokenizer(text)
    assert tokenizer.vocab_size == len(set(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert sorted(set(tokenizer.encode(text))) == list(range(tokenizer.vocab_size))
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


def test_what_is_not_in_the_vocabulary_is_named():
    tokenizer = gpt.build_char_tokenizer("abc")
    with pytest.raises(gpt.UserError, match=r"'abc' has no \['z', 'é'\]"):
        tokenizer.encode("aézé")
    for wrong in (3, -1):
        with pytest.raises(gpt.UserError, match=rf"no ids \[{wrong}\]; .* 0 to 2"):
            tokenizer.decode([0, wrong])
        with pytest.raises(gpt.UserError, match=rf"no ids \[{255 * wrong}\]; .* 0 to 255"):
            gpt.BPETokenizer([]).decode([0, 255 * wrong])


TOKENIZERS = [gpt.build_char_tokenizer("the cat sat on the mat"),
              gpt.BPETokenizer(gpt.find_merges("the cat sat on the mat", 259))]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_tokenizer_can_be_made_again_from_its_vocabulary(tokenizer):
    again = type(tokenizer)(tokenizer.vocabulary)
    assert again.vocab_size == tokenizer.vocab_size
    ids = tokenizer.encode("that hat")
    assert again.encode("that hat") == ids and again.decode(ids) == "that hat"


@pytest.mark.parametrize("vocab_size, dtype", [
    (1, torch.uint8), (256, torch.uint8), (257, torch.int16), (32768, torch.int16), (32769, torch.int32)])
def test_a_whole_text_is_encoded_in_the_smallest_type_that_holds_it(vocab_size, dtype):
    tokenizer = gpt.CharTokenizer("".join(map(chr, range(vocab_size))))
    text = tokenizer.characters[::-1]                                   # with the largest id
    tokens = gpt.encode_all(text, tokenizer)
    assert tokens.dtype == dtype and tokens.tolist() == tokenizer.encode(text)


@pytest.mark.parametrize("length", [0, 1, 999_999, 1_000_000, 1_000_001, 2_000_003])
def test_of_a_whole_text_nothing_is_lost(length):
    characters = bytes(range(97, 120)).decode()                         # a prime number of them
    text, tokenizer = (characters * (length // 23 + 1))[:length], gpt.CharTokenizer(characters)
    tokens = gpt.encode_all(text, tokenizer)
    assert tokens.shape == (length,) and tokens.dtype == torch.uint8
    assert torch.equal(tokens, torch.tensor(tokenizer.encode(text), dtype=torch.uint8))


def test_a_whole_text_in_pieces_of_words_comes_back():
    tokenizer, text = TOKENIZERS[1], "the cat sat " * 84_000            # more than a million
    tokens = gpt.encode_all(text, tokenizer)
    assert tokens.dtype == torch.int16 and tokenizer.decode(tokens.tolist()) == text
    start = tokenizer.encode(text[:600_000])
    assert tokens[:len(start)].tolist() == start


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
    assert len(val_part) == min(-(-length // 10), gpt.HELD_OUT) and gpt.HELD_OUT == 200_000


def test_batches_are_shifted_by_one_and_depend_on_seed_and_step_alone():
    config = gpt.Config(batch_size=5, block_size=7, seed=3)
    data = torch.randperm(1000)
    x, y = gpt.get_batch(data, 11, config)
    assert x.shape == y.shape == (5, 7)
    place = {token: i for i, token in enumerate(data.tolist())}
    for row_x, row_y in zip(x.tolist(), y.tolist()):
        assert [place[token] for token in row_x] == list(range(place[row_x[0]], place[row_x[0]] + 7))
        assert row_x[1:] == row_y[:-1] and place[row_y[-1]] == place[row_x[-1]] + 1
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
