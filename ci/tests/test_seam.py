"""What a fork adds: from a cell, in other processes, on a cluster, from a file; and what its runs are called."""

import json
import linecache
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import riembn
from riembn.additions import carried, load_plugin, take_over
from riembn.experiment.source import code_digest, is_foreign
from riembn.open_table import OpenTable

LION = """
    import torch, riembn

    class LionG(torch.optim.Optimizer):
        '''Sign of the momentum, then rows back to their length.'''

        def __init__(self, params, lr=0.01, beta3=0.9):
            super().__init__(params, dict(lr=lr, beta3=beta3))

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    m.lerp_(p.grad, 1 - group["beta3"])
                    norm = p.flatten(1).norm(dim=1).view(-1, *[1] * (p.dim() - 1))
                    p.sub_(m.sign() * norm, alpha=group["lr"] * SPEED)
                    p.mul_(norm / p.flatten(1).norm(dim=1).view_as(norm))

    SPEED = 1.0
    riembn.methods["lion-g"] = riembn.Method(
        optimizer=LionG, lr=0.02, options={"beta3": 0.99}, rest="adamw"
    )
"""
PRESET = {"width": 0.06, "train_size": 128, "epochs": 1}


@pytest.fixture
def lion(tmp_path):
    path = tmp_path / "my_methods.py"
    path.write_text(textwrap.dedent(LION))
    yield path
    riembn.methods.pop("lion-g", None)


def test_tables_keep_their_own_entries():
    table = OpenTable("method", {"a": 1})
    table["b-2"] = 3
    assert list(table) == ["a", "b-2"] and table.added == {"b-2": 3}
    for change in (lambda: table.update(a=2), lambda: table.pop("a")):
        with pytest.raises(ValueError, match="'a' is the package's own; choose another name"):
            change()
    for name in ("B", "", "a/b", "a b"):
        with pytest.raises(ValueError, match="is not accepted; give lower-case letters"):
            table[name] = 1
    with pytest.raises(KeyError, match="no method 'c'; there are a, b-2"):
        table["c"]


def test_method_of_a_file_trains_and_options_reach_it(lion):
    load_plugin(lion)
    config = riembn.preset("vgg-11/digits/lion-g", options={"beta3": 0.5}, **PRESET)
    assert (config.rest, config.rest_lr, config.lr) == ("adamw", 1e-3, 0.02)
    record = riembn.train(config, device="cpu")
    assert record.status == "finished" and record.config.options == {"beta3": 0.5}
    with pytest.raises(ValueError, match="method='lion-g' takes beta3"):
        riembn.preset("vgg-11/digits/lion-g", options={"beta4": 0.5}, **PRESET)


def test_edited_code_is_another_run_and_comments_are_not(lion):
    def digest(text: str) -> str:
        lion.write_text(textwrap.dedent(text))
        load_plugin_again(lion)
        return riembn.preset("vgg-11/digits/lion-g", **PRESET).digest()

    first = digest(LION)
    assert digest(LION.replace("# ", "#  ").replace("import torch, riembn", "import torch, riembn  # both")) == first
    assert digest(LION.replace("m.sign()", "m.tanh()")) != first
    assert digest(LION.replace("SPEED = 1.0", "SPEED = 2.0")) != first
    assert digest(LION.replace('{"beta3": 0.99}', '{"beta3": 0.9}')) != first  # said by the entry alone
    assert digest(LION) == first


def load_plugin_again(path: Path) -> None:
    riembn.methods.pop("lion-g", None)
    load_plugin(path)


def test_record_is_read_without_its_methods_code(lion, tmp_path, capsys):
    from riembn.__main__ import main

    load_plugin(lion)
    store = riembn.Store(tmp_path / "store")
    record = riembn.train(riembn.preset("vgg-11/digits/lion-g", **PRESET), store=store, device="cpu")
    del riembn.methods["lion-g"]
    (read,) = store.records()
    assert read == record and read.digest == record.digest
    assert len(store.frame()) == 1 and store.verify() == []
    for words in (["show"], ["report"], ["report", "--claims"], ["verify"]):
        assert main([*words, "--store", str(store.path)]) == 0
    assert record.digest in capsys.readouterr().out


def test_added_method_reaches_two_processes_and_the_command_line(lion, tmp_path):
    words = ["sweep", "--preset", "vgg-11/digits/lion-g", "--plugin", str(lion), "--seeds", "0,1", "--jobs", "2"]
    fields = ["--width", "0.06", "--train-size", "128", "--epochs", "1", "--options", "beta3=0.9"]
    done = subprocess.run(
        [sys.executable, "-m", "riembn", *words, *fields, "--store", str(tmp_path / "s"), "--device", "cpu"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = [json.loads(p.read_text()) for p in (tmp_path / "s").glob("*.json")]
    assert len(records) == 2 and all(r["config"]["code"]["method"] for r in records)
    assert {r["config"]["options"]["beta3"] for r in records} == {0.9}


def test_class_of_a_main_module_goes_to_two_processes(tmp_path):
    # As from a notebook: a class of __main__, no file that a worker could import.
    script = textwrap.dedent(LION) + textwrap.dedent(
        f"""
        base = riembn.preset("vgg-11/digits/lion-g", **{PRESET!r})
        frame = riembn.sweep(riembn.grid(base, seed=range(2)), store={str(tmp_path / "s")!r}, n_jobs=2, device="cpu")
        print(len(frame), frame["status"].unique().tolist())
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 ['finished']" in done.stdout


def test_what_was_added_is_carried_and_taken_over(lion):
    assert carried() is None
    load_plugin(lion)
    own, added = riembn.methods["lion-g"], carried()
    take_over(added)
    assert riembn.methods["lion-g"] is own  # no copy, whose helpers would stay as they are now
    taken = subprocess.run(
        [sys.executable, "-c", f"from riembn.additions import *; take_over({added!r}); import riembn; "
        "print(riembn.methods['lion-g'].options)"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "{'beta3': 0.99}" in taken.stdout, taken.stderr


def test_dataclass_of_a_file_with_postponed_annotations(lion):
    postponed = "from __future__ import annotations\nimport dataclasses\n"
    lion.write_text(
        postponed
        + "@dataclasses.dataclass\nclass Settings:\n    beta: float = 0.9\n    more: dataclasses.InitVar[int] = 0\n"
        + textwrap.dedent(LION)
    )
    load_plugin(lion)
    assert "lion-g" in riembn.methods


@pytest.mark.parametrize(
    ("text", "message"),
    [("1 +", "fails with SyntaxError"), ("x = 1", "adds nothing"), ("import nowhere", "fails with ModuleNotFound")],
)
def test_plugin_that_is_none_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_plugin(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_plugin(tmp_path / "absent.py")


def test_own_code_is_told_from_the_packages():
    assert not is_foreign(torch.optim.AdamW) and not is_foreign(riembn.SGDG)
    assert is_foreign(load_plugin_again) and code_digest(load_plugin_again) == code_digest(load_plugin_again)


# Each with one part that is another one in its second form, and what is digested.
HELD = {
    "a closure": ("def made(beta):\n    def f():\n        return beta\n    return f\nf = made({})", "1", "2"),
    "a default": ("B = {}\ndef f(x=B):\n    return x", "1", "2"),
    "a keyword's default": ("B = {}\ndef f(*, x=B):\n    return x", "1", "2"),
    "a list that is read": ("B = [1, {}]\ndef f():\n    return B[0]", "1", "2"),
    "a dictionary that is read": ("B = dict(b={})\ndef f():\n    return B['b']", "1", "2"),
    "a helper": ("def h():\n    return {}\ndef f():\n    return h()", "1", "2"),
    "a helper's helper": ("def g():\n    return {}\ndef h():\n    return g()\ndef f():\n    return h()", "1", "2"),
    "a helper in a tuple": ("def h():\n    return {}\nALL = (h,)\ndef f():\n    return ALL", "1", "2"),
    "a nested function": ("def f():\n    def g():\n        return {}\n    return g()", "1", "2"),
    "a lambda": ("f = lambda: {}", "1", "2"),
    "a decorator": (
        "def d(h):\n    def w():\n        return h() * {}\n    return w\n@d\ndef f():\n    return 1", "1", "2",
    ),
    "an attribute of a class": ("B = {}\nclass f:\n    b = B", "1", "2"),
    "a base class": ("class A:\n    def g(self):\n        return {}\nclass f(A):\n    pass", "1", "2"),
    "a property": ("class f:\n    @property\n    def g(self):\n        return {}", "1", "2"),
    "a class method": ("class f:\n    @classmethod\n    def g(cls):\n        return {}", "1", "2"),
    "a partial's argument": ("import functools\ndef g(x):\n    return x\nf = functools.partial(g, {})", "1", "2"),
    "a partial of torch's": (
        "import functools, torch\nf = functools.partial(torch.optim.AdamW, amsgrad={})", "True", "False",
    ),
    "an object that is called": (
        "class C:\n    def __init__(self, b):\n        self.b = b\n    def __call__(self):\n        return self.b\n"
        "f = C({})", "1", "2",
    ),
    "an object's method": (
        "class C:\n    def __init__(self, b):\n        self.b = b\n    def g(self):\n        return self.b\n"
        "f = C({}).g", "1", "2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("with_source", [True, False])
@pytest.mark.parametrize("what", HELD)
def test_digest_of_code_covers(what, with_source):
    text, first, second = HELD[what]

    def digest(source: str, file: str) -> str:
        linecache.cache.pop(file, None)
        if with_source:  # as a notebook's cell
            linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
        names = {"__name__": "held"}
        exec(compile(source, file, "exec"), names)
        assert is_foreign(names["f"])
        return code_digest(names["f"])

    one = digest(text.format(first), "<cell 1>")
    assert digest(text.format(second), "<cell 2>") != one
    assert digest("\n" * with_source + text.format(first), "<cell 3>") == one


def test_digest_of_code_is_the_same_in_every_process():
    text = """
def act(x): return x
def make(x, act=act): return ALL, {"a", "b", "c"} & {x}, x in {"d", "e", "f"}
ALL = (act, [act], {"a": act}, {"g", "h"})
from riembn.experiment.source import code_digest
import functools
print(code_digest(make), code_digest(functools.partial(make, act=act)))
"""
    told = [
        subprocess.run(
            [sys.executable, "-c", text], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert told[0] == told[1]


def test_digest_of_an_optimizer_is_the_same_after_its_first_instance():
    class Mine(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure=None):
            return None

    class Child(Mine):
        pass

    before = code_digest(Mine), code_digest(Child)
    for kind in (Child, Mine):
        kind([torch.nn.Parameter(torch.zeros(1))], {})
    assert (code_digest(Mine), code_digest(Child)) == before


def test_digest_of_code_covers_a_module_beside_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))

    def digest(value: int) -> str:
        (tmp_path / "beside_it.py").write_text(f"def h():\n    return {value}\n")
        sys.modules.pop("beside_it", None)
        linecache.checkcache()
        names = {"__name__": "held"}
        exec("import beside_it as m\ndef f():\n    return m.h()", names)
        return code_digest(names["f"])

    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        assert digest(1) != digest(22)
    finally:
        sys.dont_write_bytecode = before
        del sys.modules["beside_it"]
