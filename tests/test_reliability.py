"""What is saved is never lost, what is loaded is never trusted, and a mistake is seen where it is.

KILLS=200 in the environment makes the loop of kill -9 longer than it is by default.
"""

import contextlib
import functools
import importlib
import io
import itertools
import math
import os
import random
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import (CATS, ROOT, TEXT, assert_same_run, assert_same_tensors, contents, files, main, one_line, read_csv,
                      tiny_config)

import gpt
import torch

KILLS = int(os.environ.get("KILLS", 20))
TOKENIZER = gpt.CharTokenizer(TEXT)
DATA = [gpt.encode_text(part, TOKENIZER) for part in gpt.train_val_split(TEXT)]


def train_long(long_run_class=gpt.LongRun, config=None, name="cats", make_gpt=gpt.build_gpt, tokenizer=TOKENIZER,
               resume=False, **changes):
    """Train a GPT as `python gpt.py` does, without the rest of the run -> what the LongRun has yielded."""
    config = config or tiny_config(vocab_size=TOKENIZER.vocab_size, **changes)
    saved = gpt.read_checkpoint(gpt.DATA / f"{name}.pt") if resume else None
    with long_run_class(name, TEXT, tokenizer, saved, text_path=os.path.abspath("cats.txt")) as long_run:
        torch.manual_seed(config.seed)
        return list(long_run(make_gpt(config), *DATA, config))


def main_with(long_run_class, *arguments):
    """The command line of gpt.py, with another LongRun."""
    command = functools.partial(gpt.run_command, long_run_class=long_run_class)
    return main(*arguments, program=lambda words: gpt.run_cleanly("gpt.py", command, words))


def before_step(step, do):
    """A LongRun that calls do(long_run, model, optimizer) before this step."""
    class Prepared(gpt.LongRun):
        def training_step(self, trained, optimizer, train_data, options):
            if self.step == step:
                do(self, trained, optimizer)
            return super().training_step(trained, optimizer, train_data, options)
    return Prepared


def save_and_stop(long_run, trained, optimizer):
    long_run.save(trained, optimizer)
    raise KeyboardInterrupt


def fail(error):
    raise error


# A run that is stopped


@pytest.mark.parametrize("step, saved", [(0, 0), (20, 15)])
def test_ctrl_c_gets_one_line_that_says_how_to_go_on(cats, step, saved):
    pressed = before_step(step, lambda *_: signal.raise_signal(signal.SIGINT))
    code, _, error = main_with(pressed, *CATS, "--name", "my cats")
    assert (code, error) == (130, f"gpt.py: stopped; step {saved} is saved. To go on:  "
                                  "python gpt.py --resume --name 'my cats'\n")
    assert gpt.read_checkpoint("data/my cats.pt").progress.step == saved
    assert main("sample", "my cats", "--tokens", 5)[0] == 0         # even before the first step


def test_ctrl_c_before_a_training_has_begun(copy):
    class Pressed(gpt.LongRun):
        def __call__(self, *arguments):
            raise KeyboardInterrupt
    before = contents(copy)
    assert main_with(Pressed, *CATS, "--name", "birds")[::2] == (130, "gpt.py: stopped before anything was saved\n")
    code, _, error = main_with(Pressed, "--resume", "--max_steps", 60)
    assert code == 130 and "stopped; step 40 is saved. To go on:  python gpt.py --resume --name cats" in error
    (copy / "data" / ".birds.lock").unlink()
    assert contents(copy) == before


def test_a_run_may_end_before_its_first_evaluation(cats):
    """It was saved once a minute, with losses that no row has yet."""
    with pytest.raises(KeyboardInterrupt):
        train_long(before_step(2, save_and_stop))
    saved = gpt.read_checkpoint("data/cats.pt").progress
    assert (saved.step, len(saved.losses), saved.history, saved.best) == (2, 2, [], None)
    rows = train_long(resume=True, max_steps=2)
    assert [(step, train_loss) for step, train_loss, _ in rows] == [(2, sum(saved.losses) / 2)]


# Two runs at once


def test_a_second_run_of_the_same_name_is_refused_and_touches_nothing(copy, monkeypatch):
    pytest.importorskip("fcntl")
    refused = []

    def start_others(*_):
        assert "cats.pt.12.tmp" not in files(copy)
        (copy / "data" / "cats.pt.3.tmp").write_text("the first run is writing")
        before = contents(copy)
        for arguments in (CATS, ["--resume", "--name", "cats"]):
            refused.append(one_line(*arguments, words="another process is training cats; --name gives"))
        assert contents(copy) == before
        assert len(train_long(name="birds")) == 2               # another name may run beside it

    (copy / "data" / "cats.pt.12.tmp").write_text("left by a run that was killed")
    (copy / "data" / "cats-7.pt.12.tmp").write_text("of another run")
    train_long(before_step(4, start_others), eval_interval=4)
    assert len(refused) == 2
    assert [name for name in files(copy) if name.endswith(".tmp")] == ["cats-7.pt.12.tmp", "cats.pt.3.tmp"]
    monkeypatch.setitem(sys.modules, "fcntl", None)             # a system without locks
    assert len(train_long()) == 2


def test_a_file_has_a_name_of_its_process_until_it_is_whole(tmp_path):
    path = tmp_path / "a.pt"
    gpt.write_whole(path, lambda file: file.write(Path(file.name).name.encode()))
    assert path.read_text() == f"a.pt.{os.getpid()}.tmp" and list(tmp_path.iterdir()) == [path]


# Mistakes in the program


@pytest.mark.parametrize("old, new, line", [
    ("nn.Linear(4 * ", "nn.Linear(3 * ", "return self.proj(x)"),
    ("    peak, warmup = ", "    raise NotImplementedError  # ", "raise NotImplementedError")])
def test_a_mistake_in_the_file_shows_its_traceback(cats, monkeypatch, old, new, line):
    source = (ROOT / "gpt.py").read_text(encoding="utf-8")
    assert source.count(old) == 1
    (cats / "my_gpt.py").write_text(source.replace(old, new), encoding="utf-8")
    monkeypatch.syspath_prepend(cats)
    monkeypatch.delitem(sys.modules, "my_gpt", raising=False)
    my_gpt = importlib.import_module("my_gpt")
    with pytest.raises(RuntimeError) as caught:
        main(*CATS, program=my_gpt.main)
    ours = [frame for frame in traceback.extract_tb(caught.tb) if frame.filename == str(cats / "my_gpt.py")]
    assert ours[-1].line.startswith(line)


@pytest.mark.parametrize("run_out", [
    lambda _: torch.empty(2**55), lambda _: bytearray(2**62),
    lambda _: fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))])
def test_where_memory_runs_out_one_line_gives_advice(run_out):
    code, _, error = main(program=functools.partial(gpt.run_cleanly, "gpt.py", run_out))
    assert code == 2 and error.startswith("gpt.py: not enough memory; ") and error.count("\n") == 1


def test_any_other_failure_shows_its_traceback():
    for error in (RuntimeError("no C++ compiler was found"), ValueError("math domain error"), KeyError("x")):
        with pytest.raises(type(error)):
            main(program=functools.partial(gpt.run_cleanly, "gpt.py", lambda _: fail(error)))


# What is saved can be loaded, or is refused before the first step


class WideMLP(gpt.GPT):
    def __init__(self, config):
        super().__init__(config)
        self.blocks[0].mlp = gpt.MLP(replace(config, n_embd=24))


class OwnTokenizer(gpt.CharTokenizer):
    pass


@pytest.mark.parametrize("changes", [
    dict(make_gpt=WideMLP), dict(make_gpt=lambda config: gpt.build_gpt(config).half()),
    dict(make_gpt=gpt.SinusoidalGPT, position="rotary"),        # its parameters have the same shapes
    dict(tokenizer=OwnTokenizer(TEXT)), dict(tokenizer=gpt.CharTokenizer("abc")),
    dict(max_steps=6.0), dict(seed=-1), dict(dropout=1.0), dict(position="rope"), dict(n_layer="2"), dict(n_embd=None),
    dict(learning_rate=math.nan)])
def test_what_could_not_be_loaded_is_refused_before_anything_is_touched(copy, changes):
    before = contents(copy)
    with pytest.raises(gpt.UserError):
        train_long(**{"make_gpt": lambda config: gpt.GPT(tiny_config(vocab_size=26)), **changes})
    assert contents(copy) == before


class Integer(int):
    """As those of NumPy: it can be computed with, and only looks like an int."""


class Twenty:
    def __index__(self):
        return 20


def test_numbers_of_other_types_are_saved_as_pythons_own(cats):
    config = gpt.Config(vocab_size=TOKENIZER.vocab_size, block_size=8, n_layer=1, n_embd=Integer(16), dropout=0.1,
                        max_steps=Twenty(), learning_rate=torch.tensor(1e-3), eval_interval=10)
    assert [step for step, *_ in train_long(config=config, make_gpt=gpt.GPT)] == [10, 20]
    saved = gpt.read_checkpoint("data/cats.pt")
    assert {name: type(x) for name, x in vars(saved.options).items()} == {
        name: field.type for name, field in gpt.Options.__dataclass_fields__.items()}
    assert (saved.options.n_embd, saved.options.max_steps) == (16, 20)
    assert train_long(config=saved.options, resume=True) == [tuple(saved.progress.history[-1].values())[:3]]


def test_loading_draws_nothing(trained):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    model, _ = gpt.load_checkpoint(trained[0] / "data" / "cats.pt")
    assert torch.equal(torch.rand(3), expected) and not model.training


# What is loaded is not trusted


class Dangerous:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def saved_as(what):
    return lambda path: torch.save(what, path)


def parameters(change):
    """A function that changes a checkpoint's last and best parameters alike."""
    def change_both(saved):
        change(saved["parameters"])
        change(saved["progress"]["best"])
    return change_both


BROKEN_FILES = {
    "empty": lambda path: path.write_bytes(b""), "a text": lambda path: path.write_text("To be, or not to be"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "half": lambda path: path.write_bytes(path.read_bytes()[:20000]), "code": saved_as(Dangerous()),
    "a list": saved_as([1, 2]), "another program": saved_as({"model": {}, "iter_num": 3})}
BROKEN = {                                                      # how it is changed, and what is said
    "code inside": (lambda saved: saved["progress"].update(text_path=Dangerous()), ""),
    "an earlier version": (lambda saved: saved.update(format="gpt.py checkpoint 4", config=saved.pop("options")),
                           "its format is 'gpt.py checkpoint 4', not"),
    **{f"no {name}": (lambda saved, name=name: saved.pop(name), f"'{name}'")
       for name in ("format", "options", "tied", "vocabulary", "parameters", "progress")},
    "a parameter too few": (parameters(lambda saved: saved.pop("lm_head.weight")), "lm_head.weight"),
    "a parameter too many": (parameters(lambda saved: saved.update(more=torch.zeros(2))), "more"),
    "another shape": (parameters(lambda saved: saved.update({"ln_f.bias": torch.zeros(3)})), "ln_f.bias"),
    "16 bits": (parameters(lambda saved: saved.update({"ln_f.bias": torch.zeros(16).half()})), "ln_f.bias is not"),
    "NaN": (parameters(lambda saved: saved["ln_f.bias"].fill_(math.nan)), "ln_f.bias is not finite"),
    "NaN in the best": (lambda saved: saved["progress"]["best"]["ln_f.bias"].fill_(math.nan), "ln_f.bias is not"),
    "an impossible option": (lambda saved: saved["options"].update(n_head=3), "must be a multiple of n_head=3"),
    "an unknown option": (lambda saved: saved["options"].update(n_experts=3), "odd options"),
    "a missing option": (lambda saved: saved["options"].pop("n_embd"), "odd options"),
    "a giant": (lambda saved: saved["options"].update(n_layer=10**9), "n_layer=1000000000"),
    "a wide giant": (lambda saved: saved["options"].update(n_embd=10**5), "size mismatch"),
    "a long giant": (lambda saved: saved["options"].update(block_size=4 * 10**9), "size mismatch"),
    "another vocabulary": (lambda saved: saved.update(vocabulary="abc"), "does not fit vocab_size=26"),
    "a character twice": (lambda saved: saved.update(vocabulary="a" * 26), "does not fit vocab_size=26"),
    "best, but no history": (lambda saved: saved["progress"].update(history=[]), ""),
    "steps without losses": (lambda saved: saved["progress"].update(history=[], best=None), ""),
    "NaN among the losses": (lambda saved: saved["progress"]["history"][0].update(val_loss=math.nan), "an odd loss"),
    "NaN in a moment": (lambda saved: saved["progress"]["optimizer"][0]["exp_avg"].fill_(math.nan), "its optimizer"),
    "an optimizer too small": (lambda saved: saved["progress"]["optimizer"].pop(1), "its optimizer"),
}


@pytest.mark.parametrize("kind", [*BROKEN_FILES, *BROKEN])
def test_what_is_no_whole_checkpoint_gets_one_line_and_runs_no_code(copy, kind):
    path, words = copy / "data" / "cats.pt", ""
    if kind in BROKEN_FILES:
        BROKEN_FILES[kind](path)
    else:
        change, words = BROKEN[kind]
        saved = torch.load(path, weights_only=True)
        change(saved)
        torch.save(saved, path)
    before = contents(copy)
    for arguments in (["sample", "cats"], ["--resume", "--max_steps", 60]):
        error = one_line(*arguments, words=words)
        assert "data/cats.pt is not a whole checkpoint: " in error and len(error) < 300
    assert contents(copy) == before                             # nothing overwritten, nothing executed


def places(saved):
    """All (container, key) in a checkpoint, however deep; but of many parameters, the first."""
    for key in list(saved) if isinstance(saved, dict) else range(len(saved)):
        yield saved, key
        if isinstance(saved[key], (dict, list)):
            inner = places(saved[key])
            yield from inner if key in ("options", "progress") else itertools.islice(inner, 5)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_whatever_type_stands_in_a_checkpoint_it_is_refused_or_goes_on(cats):
    with pytest.raises(KeyboardInterrupt):
        train_long(before_step(4, save_and_stop), n_layer=1)
    path, answers = Path("data/cats.pt"), []
    saved = torch.load(path, weights_only=True)
    for container, key in list(places(saved)):
        for odd in (None, "odd", torch.zeros(2, 3)):
            kept, container[key] = container[key], odd
            torch.save(saved, path)
            container[key] = kept
            try:
                read = gpt.read_checkpoint(path)
                if read.progress:
                    train_long(config=replace(read.options, max_steps=5), resume=True)
                answers.append("read")
            except gpt.UserError:
                answers.append("refused")
    assert answers.count("refused") > 100 and answers.count("read") > 2, answers


def test_a_file_with_wrong_bytes_is_refused_or_read_but_never_breaks_the_program(trained, tmp_path):
    whole, draw, refused = (trained[0] / "data" / "cats.pt").read_bytes(), random.Random(5), 0
    for _ in range(20):
        spoiled = bytearray(whole)
        for _ in range(20):
            spoiled[draw.randrange(len(spoiled))] = draw.randrange(256)
        (tmp_path / "a.pt").write_bytes(spoiled)
        try:
            gpt.read_checkpoint(tmp_path / "a.pt")
        except gpt.UserError:
            refused += 1
    assert refused > 10


# The disk


@pytest.mark.parametrize("limit", [0, 8192, 30000])
def test_a_disk_that_is_full_keeps_the_checkpoint_before(copy, limit):
    resource = pytest.importorskip("resource")
    before = contents(copy)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))    # the system refuses more bytes in a file
    try:
        with pytest.raises(OSError, match="File too large"):
            train_long(config=gpt.read_checkpoint("data/cats.pt").options, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(copy) == before


def test_a_log_that_cannot_be_written_is_no_reason_to_stop(cats, capsys):
    """Another program may hold it, as a spreadsheet does on Windows."""
    def hold(*_):
        Path("data/cats.csv").unlink()
        Path("data/cats.csv").mkdir()
    assert len(train_long(before_step(4, hold))) == 2
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and warning.endswith("; the checkpoint is saved\n") and "cats.csv" in warning
    assert gpt.read_checkpoint("data/cats.pt").progress.step == 6


@pytest.mark.parametrize("make", [lambda path: path.write_text("a file"),
                                  lambda path: path.symlink_to("nowhere/at/all")])
def test_a_folder_that_is_none_gets_one_line_before_the_first_step(cats, make):
    make(cats / "data")
    before = contents(cats)
    assert main_with(before_step(0, lambda *_: pytest.fail("a step")), *CATS)[0] == 2
    assert contents(cats) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_gets_one_line(copy):
    before = contents(copy)
    (copy / "data").chmod(0o500)
    try:
        one_line("--resume", "--max_steps", 60, words="Permission denied")
        assert contents(copy) == before
    finally:
        (copy / "data").chmod(0o700)


# Numbers that are none


def lose_a_parameter(long_run, trained, optimizer):
    trained.ln_f.weight.data.fill_(math.nan)


def lose_a_parameter_and_save(long_run, trained, optimizer):
    """The loss of a batch is from before the step: it may be finite when the parameters no longer are."""
    lose_a_parameter(long_run, trained, optimizer)
    long_run.save(trained, optimizer)


@pytest.mark.parametrize("do, words", [(lambda long_run, *_: long_run.losses.append(math.nan), "loss: "),
                                       (lose_a_parameter, "loss: "), (lose_a_parameter_and_save, "ln_f.weight: ")])
def test_a_number_that_is_lost_stops_a_run_and_is_never_saved(cats, do, words):
    with pytest.raises(gpt.UserError, match=f"{words}not a finite number. Try a lower learning_rate"):
        train_long(before_step(4, do))
    assert gpt.read_checkpoint("data/cats.pt").progress.step == 3
    assert [row["step"] for row in read_csv("data/cats.csv")] == ["3"]


@pytest.mark.parametrize("step", [1, 4])                        # before the first evaluation, and after it
def test_nan_is_never_the_best(cats, step):
    best = []

    class Watched(before_step(step, lose_a_parameter)):
        def evaluate(self, *arguments):
            super().evaluate(*arguments)
            best.append(self.best)

    with pytest.raises(gpt.UserError):
        train_long(Watched)
    assert best == [None] if step == 1 else best[0] is best[1] and best[0]["ln_f.weight"].isfinite().all()


# Nothing is written over


def test_a_new_run_sets_the_one_before_aside(copy, capsys):
    first = {path.name: content for path, content in contents(copy / "data").items() if path.name[0] != "."}
    train_long(seed=2)
    assert capsys.readouterr().err == "the earlier run cats is now called cats-1\n"
    assert files(copy) == sorted(["cats.csv", "cats.pt", *(name.replace("cats", "cats-1") for name in first)])
    assert all((copy / "data" / name.replace("cats", "cats-1")).read_bytes() == content
               for name, content in first.items())
    train_long(name="x" * 200)                                  # the longest name that fits
    (copy / "data" / "gone.pt").symlink_to("nowhere.pt")        # what a link names may be gone
    train_long(name="gone")
    assert (copy / "data" / "gone-1.pt").is_symlink() and not (copy / "data" / "gone.pt").is_symlink()


@pytest.mark.parametrize("name", ["cats.csv", "cats-gpt.txt", "cats-bigram.txt", "cats.html", "cats-1.pt"])
def test_a_file_of_the_user_is_not_written_over(cats, name):
    (cats / "data").mkdir()
    (cats / "data" / name).write_text("my own work")
    train_long()
    gpt.set_aside("cats")
    assert b"my own work" in contents(cats / "data").values() and "cats.pt" not in files(cats)


@pytest.mark.parametrize("renames", range(4))
def test_a_stop_while_a_run_is_set_aside_loses_nothing(copy, monkeypatch, renames):
    kept, rename, count = set(contents(copy / "data").values()), Path.rename, iter(range(9))

    def stopped(path, target):
        if next(count) == renames:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", stopped)
        gpt.set_aside("cats")
    assert set(contents(copy / "data").values()) == kept
    gpt.set_aside("cats")
    assert set(contents(copy / "data").values()) == kept and "cats.pt" not in files(copy)


# Beside busy programs


@pytest.fixture
def two_threads(monkeypatch):
    """This process may use two threads, and the user has not said how many."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("seconds_of_one, fastest", [(0.01, 1), (0.04, 2), (0.019, 2)])
def test_the_fastest_number_of_threads_is_found(two_threads, seconds_of_one, fastest):
    """Two threads take 0.02 seconds; one must save a tenth of it."""
    seconds = {2: 0.02, 1: seconds_of_one}
    assert gpt.fastest_threads(lambda: time.sleep(seconds[torch.get_num_threads()])) == fastest
    assert torch.get_num_threads() == 2


def test_a_run_keeps_its_number_of_threads_and_gives_them_back(cats, two_threads, monkeypatch, capsys):
    """Trying how many are fastest changes no bit, and a run that is resumed goes on with as many."""
    tried = []

    def one_is_fastest(step):
        tried.append(step())
        return 1

    monkeypatch.setattr(gpt, "fastest_threads", one_is_fastest)
    with pytest.raises(KeyboardInterrupt):
        train_long(before_step(4, save_and_stop), dropout=0.1)
    assert len(tried) == 2                                  # for the bigram, and for the GPT
    assert capsys.readouterr().err == "cats: trains with 1 of 2 threads, which is fastest now\n"
    assert gpt.read_checkpoint("data/cats.pt").progress.threads == 1 and torch.get_num_threads() == 2
    seen = []
    rows = train_long(before_step(4, lambda *_: seen.append(torch.get_num_threads())), dropout=0.1, resume=True)
    assert len(tried) == 2 and seen == [1] and torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "1")              # the user decides: nothing is tried
    torch.set_num_threads(1)
    assert train_long(name="birds", dropout=0.1)[-1] == rows[-1] and len(tried) == 2
    birds, cats = (gpt.read_checkpoint(f"data/{name}.pt") for name in ("birds", "cats"))
    assert_same_tensors(birds.parameters, cats.parameters)


# Killed at any moment


LONGER = dict(block_size=16, n_layer=1, n_head=2, n_embd=16, dropout=0.1, max_steps=60, eval_interval=20)


def in_a_fork(folder, task):
    """Start task() in that folder and in a process of its own, which has all imports already -> its id."""
    folder.mkdir(exist_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(folder)
            Path("cats.txt").write_text(TEXT)
            torch.set_num_threads(1)                        # the threads of this process stay behind
            task()
        except BaseException:
            (folder / "error.txt").write_text(traceback.format_exc())
            os._exit(1)
        os._exit(0)
    return pid


def exit_code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_whole():
    assert main("--text", "cats.txt", *(f"--{name}={value}" for name, value in LONGER.items()))[0] == 0


def run_on():
    with contextlib.redirect_stderr(io.StringIO()):
        train_long(config=gpt.Options(vocab_size=TOKENIZER.vocab_size, **LONGER), resume=Path("data/cats.pt").exists())


def finish():
    assert main("--resume")[0] == 0


@pytest.mark.skipif(not hasattr(os, "fork") or torch.cuda.is_available(), reason="this process cannot be forked")
def test_kill_9_at_random_moments_loses_nothing(tmp_path, monkeypatch):
    """One run that is never stopped, and others that are killed twenty times each."""
    import torch._dynamo                                    # an optimizer imports it, late and slowly
    monkeypatch.setattr(gpt, "SAVE_SECONDS", 0.01)          # some saves in between, too
    seed = random.randrange(10**6)
    print("the seed of the kills:", seed)
    draw, began, whole = random.Random(seed), time.monotonic(), tmp_path / "whole"
    assert exit_code(in_a_fork(whole, run_whole)) == 0, (whole / "error.txt").read_text()
    longest = (time.monotonic() - began) / 12
    for i in range(max(1, KILLS // 20)):
        folder, killed_at = tmp_path / f"killed-{i}", set()
        for _ in range(20):
            pid = in_a_fork(folder, run_on)
            time.sleep(draw.uniform(0, longest))
            os.kill(pid, signal.SIGKILL)
            code, path = exit_code(pid), folder / "data" / "cats.pt"
            assert code in (0, -signal.SIGKILL), (folder / "error.txt").read_text()
            killed_at.add(code and path.exists() and gpt.read_checkpoint(path).progress.step)
        assert len(killed_at) > 2, killed_at                # what was saved differs, and can be read
        assert exit_code(in_a_fork(folder, finish)) == 0, (folder / "error.txt").read_text()
        assert_same_run(folder, whole)
        assert files(folder) == files(whole) and len(files(folder)) == 4        # no half file is left
