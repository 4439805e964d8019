"""Appendix, GPT-2: a tiny one, written by the usual libraries with tests/gpt2/make.py."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import main, one_line, save_model

import gpt

TINY = Path(__file__).parent / "gpt2"
FILES = ("config.json", "tokenizer.json", "model.safetensors")
EXPECTED = json.loads((TINY / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def loaded():
    return gpt.load_gpt2(TINY)


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny GPT-2, to spoil."""
    for name in FILES:
        shutil.copy(TINY / name, tmp_path / name)
    return tmp_path


def write_safetensors(path, parameters, change=lambda header: header):
    """Write tensors by name; `change` may spoil the header."""
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8"}
    header, numbers = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in parameters.items():
        these = bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [len(numbers), len(numbers) + len(these)]}
        numbers += these
    header = json.dumps(change(header)).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + numbers)


def parameters_of(folder):
    return gpt.read_safetensors(folder / "model.safetensors")


def change_json(path, change):
    """Let `change` work on what a JSON file holds, and write it back."""
    about = json.loads(path.read_text(encoding="utf-8"))
    change(about)
    path.write_text(json.dumps(about), encoding="utf-8")


def same(model, other):
    return all(torch.equal(p, other.state_dict()[name]) for name, p in model.state_dict().items())


# What the usual libraries say


@pytest.mark.parametrize("text", EXPECTED["ids"])
def test_texts_are_cut_as_gpt_2_cuts_them(loaded, text):
    tokenizer = loaded[1]
    assert tokenizer.encode(text) == EXPECTED["ids"][text]
    assert tokenizer.decode(EXPECTED["ids"][text]) == text


def test_logits_and_greedy_texts_are_those_of_gpt_2(loaded):
    model, tokenizer = loaded
    logits = gpt.read_safetensors(TINY / "expected.safetensors")
    for i, (text, ids) in enumerate(EXPECTED["greedy"].items()):
        idx = torch.tensor([tokenizer.encode(text)])
        torch.testing.assert_close(model(idx)[0][0], logits[str(i)], atol=1e-5, rtol=0)
        assert logits[str(i)].abs().max() > 3                   # far from a model that says nothing
        for generate in (gpt.generate, gpt.generate_cached):
            assert generate(model, idx, 20, temperature=0)[0].tolist() == ids


def test_the_ids_may_be_in_any_order(folder, loaded):
    model, tokenizer = loaded
    order = torch.randperm(321, generator=torch.Generator().manual_seed(0))         # the new id of each token
    change_json(folder / "tokenizer.json", lambda about: about["model"].update(
        vocab={piece: order[i].item() for piece, i in about["model"]["vocab"].items()}))
    parameters = parameters_of(folder)
    parameters["transformer.wte.weight"] = parameters["transformer.wte.weight"][order.argsort()]
    write_safetensors(folder / "model.safetensors", parameters)
    other, its_tokenizer = gpt.load_gpt2(folder)
    for text, ids in EXPECTED["ids"].items():
        assert its_tokenizer.encode(text) == order[torch.tensor(ids, dtype=torch.int64)].tolist()
        assert its_tokenizer.decode(its_tokenizer.encode(text)) == text
    for text, ids in EXPECTED["greedy"].items():
        written = gpt.generate(other, torch.tensor([its_tokenizer.encode(text)]), 20, temperature=0)
        assert its_tokenizer.decode(written[0].tolist()) == tokenizer.decode(ids)


def test_the_tokenizer_may_be_written_by_newer_versions(folder):
    """They write merges as pairs; and an editor may have put a byte-order mark before the file."""
    path = folder / "tokenizer.json"
    change_json(path, lambda about: about["model"].update(
        merges=[pair.split(" ") for pair in about["model"]["merges"]]))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    tokenizer = gpt.load_gpt2(folder)[1]
    assert all(tokenizer.encode(text) == ids for text, ids in EXPECTED["ids"].items())


# Parameters


def test_loading_draws_nothing_and_the_model_is_ready(loaded):
    before = torch.get_rng_state()
    model, tokenizer = gpt.load_gpt2(TINY)
    assert torch.equal(torch.get_rng_state(), before) and not model.training
    assert model.token_embedding.weight is model.lm_head.weight
    assert tokenizer.vocab_size == model.config.vocab_size == 321
    assert gpt.check_options(model.config).block_size == 48


def test_names_may_lack_their_prefix_and_masks_are_skipped(loaded, folder):
    parameters = {name.removeprefix("transformer."): p for name, p in parameters_of(folder).items()}
    parameters["h.0.attn.bias"] = torch.ones(1, 1, 48, 48, dtype=torch.uint8)
    parameters["h.0.attn.masked_bias"] = torch.tensor([-1e4])
    write_safetensors(folder / "model.safetensors", parameters)
    assert same(gpt.load_gpt2(folder)[0], loaded[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_of_16_bits_become_32(loaded, folder, dtype):
    halves = {name: p.to(dtype) for name, p in parameters_of(folder).items()}
    write_safetensors(folder / "model.safetensors", halves)
    model, _ = gpt.load_gpt2(folder)
    for name, p in loaded[0].state_dict().items():
        assert torch.equal(model.state_dict()[name], p.to(dtype).float())


def test_an_untied_head_is_its_own(loaded, folder):
    parameters = parameters_of(folder)
    write_safetensors(folder / "model.safetensors", {**parameters, "lm_head.weight": torch.zeros(321, 16)})
    assert same(gpt.load_gpt2(folder)[0], loaded[0])            # tied: the embedding is what counts
    change_json(folder / "config.json", lambda about: about.update(tie_word_embeddings=False))
    model, _ = gpt.load_gpt2(folder)
    assert not model.lm_head.weight.any() and model.token_embedding.weight.any()


def change_entry(**changes):
    """Change what a header says of the first tensor."""
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
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_gets_one_line(folder, lie):
    write_safetensors(folder / "model.safetensors", parameters_of(folder), **LIES[lie])
    one_line("sample", folder, words="has no GPT-2 that can be used")


@pytest.mark.parametrize("content", [b"", b"1234", (2**63).to_bytes(8, "little") + b"{}", bytes(8),
                                     b"\x02" + bytes(7) + b"{}", b"\x03" + bytes(7) + b"\xff\xfe{"])
def test_a_file_that_is_no_safetensors_gets_one_line(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    one_line("sample", folder, words="has no GPT-2 that can be used")


def test_a_file_that_is_cut_off_is_refused(folder):
    whole = (folder / "model.safetensors").read_bytes()
    for length in (*range(0, len(whole), len(whole) // 20), len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="has no GPT-2"):
            gpt.load_gpt2(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_named(folder, name):
    (folder / name).unlink()
    one_line("sample", folder, words=name)


def test_a_missing_or_extra_or_infinite_parameter_is_refused(folder):
    parameters = parameters_of(folder)
    name = "transformer.h.1.mlp.c_fc.bias"
    spoiled = {"blocks.1.mlp.fc.bias": {n: p for n, p in parameters.items() if n != name},
               "blocks.7.ln_1": {**parameters, "transformer.h.7.ln_1.weight": torch.ones(16)},
               "not finite": {**parameters, name: parameters[name] / 0}}
    for words, content in spoiled.items():
        write_safetensors(folder / "model.safetensors", content)
        one_line("sample", folder, words="has no GPT-2 that can be used")
        with pytest.raises(ValueError) as caught:
            gpt.load_gpt2(folder)
        assert words in str(caught.value.__cause__)


def test_rows_that_only_pad_the_table_are_left_out(folder, loaded):
    """Some training programs round the vocabulary up, as 50,257 to 50,304, and the rows beyond mean nothing."""
    parameters = parameters_of(folder)
    table = parameters["transformer.wte.weight"]
    write_safetensors(folder / "model.safetensors",
                      {**parameters, "transformer.wte.weight": torch.cat((table, torch.randn(63, table.shape[1])))})
    change_json(folder / "config.json", lambda about: about.update(vocab_size=len(table) + 63))
    model, _ = gpt.load_gpt2(folder)
    assert same(model, loaded[0])


def test_a_pointer_of_git_lfs_is_named(folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105171\n"
    (folder / "model.safetensors").write_text(pointer)
    one_line("sample", folder, words="model.safetensors is not complete, or only a pointer of git-lfs")


@pytest.mark.parametrize("changes, words", [
    (dict(model_type="llama"), "model_type is 'llama'"), (dict(model_type=None), "model_type"),
    (dict(activation_function="relu"), "activation_function"), (dict(layer_norm_epsilon=1e-6), "layer_norm_epsilon"),
    (dict(scale_attn_weights=False), "scale_attn_weights"), (dict(scale_attn_by_inverse_layer_idx=True), "inverse"),
    (dict(vocab_size=320), "321 tokens do not fit vocab_size=320"), (dict(n_head=5), "n_embd=16 must be a multiple"),
    (dict(n_layer=10**9), "n_layer"), (dict(n_layer=1), "blocks.1"), (dict(n_positions=49), "size mismatch"),
    (dict(n_embd=32), "size mismatch"), (dict(n_embd="16"), "")])
def test_another_architecture_gets_one_line(folder, changes, words):
    change_json(folder / "config.json", lambda about: about.update(changes))
    one_line("sample", folder, words="has no GPT-2 that can be used")
    with pytest.raises(ValueError) as caught:
        gpt.load_gpt2(folder)
    assert words in str(caught.value.__cause__)


@pytest.mark.parametrize("file, before, after", [
    ("tokenizer.json", '"!": 0', '"!": 1'), ("tokenizer.json", '"!": 0, ', ""),
    ("tokenizer.json", '"!": 0', '"!": 999'), ("tokenizer.json", '"model"', '"else"'),
    ("tokenizer.json", '"<|endoftext|>": 320', '"<|fin|>": 320'), ("tokenizer.json", "{", "["),
    ("tokenizer.json", '"Ġt h"', '"Ġth"'), ("tokenizer.json", '"Ġ t"', '"Ġ 日"'),
    ("config.json", "{", "")])
def test_a_vocabulary_that_is_not_whole_gets_one_line(folder, file, before, after):
    text = (folder / file).read_text(encoding="utf-8")
    assert before in text
    (folder / file).write_text(text.replace(before, after, 1), encoding="utf-8")
    one_line("sample", folder, words="has no GPT-2 that can be used")


# The command


def test_sample_continues_a_prompt_greedily(loaded):
    (text, ids), tokenizer = next(iter(EXPECTED["greedy"].items())), loaded[1]
    code, output, error = main("sample", TINY, "--prompt", text, "--tokens", 20, "--temperature", 0, "--seed", 5)
    assert (code, output, error) == (0, tokenizer.decode(ids) + "\n", f"{TINY} writes, with --seed 5:\n")


def test_an_empty_prompt_is_the_end_of_the_text_before_and_writing_stops_at_one(folder):
    code, output, _ = main("sample", folder, "--tokens", 5, "--seed", 1)
    assert code == 0 and output.startswith(gpt.END)
    parameters, name = parameters_of(folder), "transformer.ln_f."       # now one that always says: end
    parameters[name + "weight"] = torch.zeros(16)
    parameters[name + "bias"] = 100 * parameters["transformer.wte.weight"][320]
    write_safetensors(folder / "model.safetensors", parameters)
    assert main("sample", folder, "--prompt", "the rain", "--temperature", 0)[1] == "the rain\n"


def test_gpt2_is_the_folder_of_that_name_in_data(in_tmp):
    assert gpt.GPT2_URL in one_line("sample", "gpt2", words="no run 'gpt2'")      # and says what goes where
    shutil.copytree(TINY, "data/gpt2")
    code, output, error = main("sample", "gpt2", "--prompt", "the rain", "--tokens", 3, "--seed", 1)
    assert code == 0 and output.startswith("the rain") and error == "data/gpt2 writes, with --seed 1:\n"


def test_a_run_of_that_name_goes_before(in_tmp):
    shutil.copytree(TINY, "data/gpt2")
    save_model("gpt2", "abc")
    assert gpt.load_checkpoint(gpt.find_run("gpt2"))[1].vocabulary == "abc"
