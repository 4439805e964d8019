"""Appendix, GPT-2: a tiny one that the usual libraries wrote; tests/gpt2/make.py has made it."""

import json
import shutil
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import requests
import torch
from conftest import serving
from test_commands import main, one_line

import gpt

TINY = Path(__file__).parent / "gpt2"
EXPECTED = json.loads((TINY / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def loaded():
    return gpt.load_gpt2(TINY)


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny GPT-2, to spoil."""
    for name in gpt.GPT2_FILES:
        shutil.copy(TINY / name, tmp_path / name)
    return tmp_path


def write_safetensors(path, weights, change=lambda header: header, more=b""):
    """Write tensors by name; `change` may spoil the header."""
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8"}
    header, numbers = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in weights.items():
        these = bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [len(numbers), len(numbers) + len(these)]}
        numbers += these
    header = json.dumps(change(header)).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + numbers + more)


def weights_of(folder):
    return dict(gpt.read_safetensors(folder / "model.safetensors"))


def same(model, other):
    return all(torch.equal(weight, other.state_dict()[name]) for name, weight in model.state_dict().items())


# What the usual libraries say


@pytest.mark.parametrize("text", EXPECTED["ids"])
def test_texts_are_cut_as_gpt_2_cuts_them(loaded, text):
    tokenizer = loaded[1]
    assert tokenizer.encode(text) == EXPECTED["ids"][text]
    assert tokenizer.decode(EXPECTED["ids"][text]) == text


def test_logits_and_greedy_texts_are_those_of_gpt_2(loaded):
    model, tokenizer = loaded
    logits = dict(gpt.read_safetensors(TINY / "expected.safetensors"))
    for i, (text, ids) in enumerate(EXPECTED["greedy"].items()):
        idx = torch.tensor([tokenizer.encode(text)])
        torch.testing.assert_close(model(idx)[0][0], logits[str(i)], atol=1e-5, rtol=0)
        assert logits[str(i)].abs().max() > 3                   # far from a model that says nothing
        for use_cache in (True, False):
            assert gpt.generate(model, idx, 20, temperature=0, use_cache=use_cache)[0].tolist() == ids


def test_the_ids_may_be_in_any_order(folder, loaded):
    model, tokenizer = loaded
    order = torch.randperm(321, generator=torch.Generator().manual_seed(0))         # the new id of each piece
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    moved = {piece: order[i].item() for piece, i in vocabulary.items()}
    (folder / "vocab.json").write_text(json.dumps(moved), encoding="utf-8")
    weights = weights_of(folder)
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"][order.argsort()]
    write_safetensors(folder / "model.safetensors", weights)
    other, its_tokenizer = gpt.load_gpt2(folder)
    for text, ids in EXPECTED["ids"].items():
        assert its_tokenizer.encode(text) == order[torch.tensor(ids, dtype=torch.int64)].tolist()
        assert its_tokenizer.decode(its_tokenizer.encode(text)) == text
    for text, ids in EXPECTED["greedy"].items():
        written = gpt.generate(other, torch.tensor([its_tokenizer.encode(text)]), 20, temperature=0)
        assert its_tokenizer.decode(written[0].tolist()) == tokenizer.decode(ids)


# Weights


def test_loading_draws_nothing_and_the_model_is_ready(loaded):
    before = torch.get_rng_state()
    model, tokenizer = gpt.load_gpt2(TINY)
    assert torch.equal(torch.get_rng_state(), before) and not model.training
    assert model.token_embedding.weight is model.lm_head.weight
    assert tokenizer.vocab_size == model.config.vocab_size == 321
    with pytest.raises(gpt.UserError, match=r"no ids \[321, -1\]"):
        tokenizer.decode([321, 0, -1])


def test_names_may_lack_their_prefix_and_masks_are_skipped(loaded, folder):
    weights = {name.removeprefix("transformer."): weight for name, weight in weights_of(folder).items()}
    weights["h.0.attn.bias"] = torch.ones(1, 1, 48, 48, dtype=torch.uint8)
    weights["h.0.attn.masked_bias"] = torch.tensor([-1e4])
    write_safetensors(folder / "model.safetensors", weights)
    assert same(gpt.load_gpt2(folder)[0], loaded[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_of_16_bits_become_32(loaded, folder, dtype):
    halves = {name: weight.to(dtype) for name, weight in weights_of(folder).items()}
    write_safetensors(folder / "model.safetensors", halves)
    model, _ = gpt.load_gpt2(folder)
    for name, weight in loaded[0].state_dict().items():
        assert torch.equal(model.state_dict()[name], weight.to(dtype).float())


def settings(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def test_an_untied_head_is_its_own(loaded, folder):
    weights = weights_of(folder)
    write_safetensors(folder / "model.safetensors", {**weights, "lm_head.weight": torch.zeros(321, 16)})
    assert same(gpt.load_gpt2(folder)[0], loaded[0])            # tied: the embedding is what counts
    settings(folder, tie_word_embeddings=False)
    model, _ = gpt.load_gpt2(folder)
    assert not model.lm_head.weight.any() and model.token_embedding.weight.any()


def change_entry(**changes):
    """Change what a header says of the first weight."""
    def change(header):
        first = next(name for name in header if name != "__metadata__")
        return {**header, first: {**header[first], **changes}}
    return change


LIES = {
    "outside the file": dict(change=change_entry(data_offsets=[0, 10**15])),
    "before the file": dict(change=change_entry(data_offsets=[-8, 0])),
    "backwards": dict(change=change_entry(data_offsets=[8, 0])),
    "overlapping": dict(change=lambda header: {name: {**about, "data_offsets": [0, 64]} if name[0] != "_" else about
                                               for name, about in header.items()}),
    "another shape": dict(change=change_entry(shape=[7, 7])),
    "a giant shape": dict(change=change_entry(shape=[2**40, 2**40])),
    "a negative shape": dict(change=change_entry(shape=[-1, 3])),
    "another type": dict(change=change_entry(dtype="F64")),
    "no type": dict(change=change_entry(dtype=None)),
    "a list": dict(change=lambda header: list(header)),
    "numbers that belong to nothing": dict(more=bytes(4)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_gets_one_line(folder, lie):
    write_safetensors(folder / "model.safetensors", weights_of(folder), **LIES[lie])
    one_line("sample", folder, words="has no GPT-2 that can be used")


@pytest.mark.parametrize("content", [b"", b"1234", (2**63).to_bytes(8, "little") + b"{}", bytes(8), b"\x02" + bytes(7) + b"{}",
                                     b"\x03" + bytes(7) + b"\xff\xfe{"])
def test_a_file_that_is_no_safetensors_gets_one_line(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    one_line("sample", folder, words="has no GPT-2 that can be used")


def test_a_file_that_is_cut_off_gets_one_line(folder):
    whole = (folder / "model.safetensors").read_bytes()
    for length in range(0, len(whole), len(whole) // 20):
        (folder / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(gpt.UserError, match="has no GPT-2"):
            gpt.load_gpt2(folder)


def test_a_missing_or_extra_or_infinite_weight_gets_one_line(folder):
    weights = weights_of(folder)
    name = "transformer.h.1.mlp.c_fc.bias"
    spoiled = {"blocks.1.feed_forward.0.bias": {n: w for n, w in weights.items() if n != name},
               "blocks.7.norm": {**weights, "transformer.h.7.ln_1.weight": torch.ones(16)},
               "there twice": {**weights, name.removeprefix("transformer."): weights[name]},
               "not finite": {**weights, name: weights[name] / 0}}
    for words, content in spoiled.items():
        write_safetensors(folder / "model.safetensors", content)
        assert "has no GPT-2 that can be used" in one_line("sample", folder)
        with pytest.raises(gpt.UserError) as caught:
            gpt.load_gpt2(folder)
        assert words in str(caught.value.__cause__)


@pytest.mark.parametrize("changes, words", [
    (dict(model_type="llama"), "model_type is 'llama' in config.json, not 'gpt2'"), (dict(model_type=None), "model_type"),
    (dict(activation_function="relu"), "activation_function"), (dict(layer_norm_epsilon=1e-6), "layer_norm_epsilon"),
    (dict(scale_attn_weights=False), "scale_attn_weights"), (dict(scale_attn_by_inverse_layer_idx=True), "inverse"),
    (dict(vocab_size=400), "321 pieces of words do not fit vocab_size=400"), (dict(n_head=5), "n_embd must be a multiple"),
    (dict(n_layer=10**9), "n_layer"), (dict(n_layer=1), "blocks.1"), (dict(n_positions=49), "size mismatch"), (dict(n_embd="16"), "n_embd")])
def test_another_architecture_gets_one_line(folder, changes, words):
    settings(folder, **changes)
    assert "Traceback" not in one_line("sample", folder, words="has no GPT-2 that can be used")
    with pytest.raises(gpt.UserError) as caught:
        gpt.load_gpt2(folder)
    assert words in str(caught.value.__cause__)


@pytest.mark.parametrize("file, before, after", [
    ("vocab.json", '"!": 0', '"!": 1'), ("vocab.json", '"!": 0, ', ""), ("vocab.json", '"!": 0', '"!": 999'),
    ("vocab.json", "<|endoftext|>", "<|fin|>"), ("vocab.json", "{", "["), ("merges.txt", "\nĠt h\n", "\n"),
    ("merges.txt", "\nĠt h\n", "\nĠth\n"), ("merges.txt", "\nĠ t\n", "\nĠ 日\n"), ("config.json", "{", "")])
def test_a_vocabulary_that_is_not_whole_gets_one_line(folder, file, before, after):
    text = (folder / file).read_text(encoding="utf-8")
    assert before in text
    (folder / file).write_text(text.replace(before, after, 1), encoding="utf-8")
    one_line("sample", folder, words="has no GPT-2 that can be used")


# The command


def test_sample_continues_a_prompt_greedily(loaded):
    (text, ids), tokenizer = next(iter(EXPECTED["greedy"].items())), loaded[1]
    code, output, error = main("sample", TINY, "--prompt", text, "--tokens", 20, "--temperature", 0)
    assert (code, output, error) == (0, tokenizer.decode(ids) + "\n", f"{TINY} writes:\n")


def test_an_empty_prompt_begins_with_the_end_of_the_text_before_and_writing_stops_at_one(folder, loaded):
    code, output, _ = main("sample", folder, "--tokens", 5, "--seed", 1)
    assert code == 0 and output.startswith(gpt.END)
    weights = weights_of(folder)                                # now one that always says: end
    name = "transformer.ln_f."
    weights[name + "weight"], weights[name + "bias"] = torch.zeros(16), 100 * weights["transformer.wte.weight"][320]
    write_safetensors(folder / "model.safetensors", weights)
    assert main("sample", folder, "--prompt", "the rain", "--temperature", 0)[1] == "the rain\n"


# Downloads, from a real server


class Handler(BaseHTTPRequestHandler):
    """Sends the files of the tiny GPT-2, well or badly."""

    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        name = Path(self.path).name
        if server.mode == "missing" and name == "merges.txt":
            return self.send_error(404)
        if server.mode == "moved" and not self.path.startswith("/elsewhere/"):
            self.send_response(302)
            self.send_header("Location", f"/elsewhere/{name}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        body = (TINY / name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        parts = 3 if server.mode == "slow" else 1
        for i in range(parts):
            part = body[i * len(body) // parts:(i + 1) * len(body) // parts]
            self.wfile.write(part[:len(part) // 2] if server.mode == "cut" and name == "vocab.json" else part)
            self.wfile.flush()
            server.over.wait(0.05 if server.mode == "slow" else 0)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch, in_tmp):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Handler) as server:
        server.mode = "well"
        monkeypatch.setattr(gpt, "GPT2_URL", server.url + "/{}/main/")
        yield server


def downloaded():
    return {path.name: path.read_bytes() for path in Path("data/gpt2").glob("*")}


WHOLE = {name: (TINY / name).read_bytes() for name in gpt.GPT2_FILES}


@pytest.mark.parametrize("mode", ["well", "slow", "moved"])
def test_what_is_missing_is_downloaded_once(server, mode):
    server.mode = mode
    for _ in range(2):
        code, output, error = main("sample", "gpt2", "--prompt", "the rain", "--tokens", 3)
        assert (code, error) == (0, "data/gpt2 writes:\n") and output.startswith("the rain")
    assert downloaded() == WHOLE
    assert [path for path in server.asked if "elsewhere" not in path] == [f"/gpt2/main/{name}" for name in gpt.GPT2_FILES]


def test_a_file_that_is_there_is_not_asked_for(server, in_tmp):
    Path("data/gpt2").mkdir(parents=True)
    shutil.copy(TINY / "model.safetensors", "data/gpt2")
    assert main("sample", "gpt2", "--tokens", 1)[0] == 0
    assert [Path(path).name for path in server.asked] == list(gpt.GPT2_FILES[:3])


@pytest.mark.parametrize("mode, there, words", [
    ("missing", 2, "data/gpt2 has no merges.txt, model.safetensors, and they cannot be downloaded (HTTPError)"),
    ("cut", 1, "data/gpt2 has no vocab.json, merges.txt, model.safetensors, and they cannot be downloaded (")])
def test_a_file_comes_whole_or_not_at_all(server, mode, there, words):
    server.mode = mode
    assert "/gpt2/main/" in one_line("sample", "gpt2", words=words)
    assert downloaded() == {name: WHOLE[name] for name in gpt.GPT2_FILES[:there]}
    server.mode = "well"
    assert main("sample", "gpt2", "--tokens", 1)[0] == 0 and downloaded() == WHOLE


def test_without_a_network_one_line_says_what_goes_where(in_tmp, monkeypatch):
    def refuse(*arguments, **options):
        raise requests.ConnectionError("no network")
    monkeypatch.setattr(requests.Session, "get", refuse)
    line = one_line("sample", "gpt2-medium", words="data/gpt2-medium has no config.json, vocab.json, merges.txt, model.safeten")
    assert "openai-community/gpt2-medium/resolve/main/" in line
    assert not any(in_tmp.iterdir())


def test_the_size_of_a_large_file_is_said_before(server, monkeypatch, tmp_path):
    body = bytes(10**7 + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda path: body)
    out = main(program=lambda _: gpt.download(gpt.GPT2_URL.format("gpt2") + "model.safetensors", tmp_path / "large"))
    assert out[2].startswith("downloading 10 MB from http://127.0.0.1")
    assert (tmp_path / "large").stat().st_size == len(body)


def test_a_run_of_that_name_goes_before(in_tmp, server):
    config = gpt.Config(vocab_size=3, block_size=4, n_layer=1, n_head=1, n_embd=2)
    tokenizer, model = gpt.build_char_tokenizer("abc"), gpt.GPT(config)
    keeper = gpt.Keeper("gpt2")
    keeper.about = {"config": gpt.asdict(config), "text_sha256": "", "vocabulary": "abc", "bigram": None}
    keeper.save(model, gpt.Report(gpt.build_optimizer(model, config)))
    assert tokenizer.vocab_size == gpt.load_model(gpt.find_run("gpt2"))[1].vocab_size and server.asked == []
