"""What a chapter does with the parameters that papermill hands to it."""

from typing import Any, Optional

import pytest

from riembn.pages import chapter

DECLARED: dict[str, Any] = {
    "profile": str,
    "thresholds": list[float],
    "seeds": "list[int]",
    "lr": float,
    "decay": "Optional[float]",
    "augment": bool,
    "names": list[str],
    "jobs": int,
}


def notebook(injected: str = "", **values: Any) -> dict[str, Any]:
    """The namespace of a notebook kernel after the parameters cell and after papermill's own cell."""
    defaults: dict[str, Any] = {
        "profile": "laptop",
        "thresholds": [0.1, 0.5],
        "seeds": [0, 1],
        "lr": 0.2,
        "decay": None,
        "augment": True,
        "names": ["a"],
        "jobs": 2,
    }
    cells = ["", "profile: str = 'laptop'", f"# Parameters\n{injected}\n"]
    return {"__annotations__": DECLARED, "In": cells, "get_ipython": print, **defaults, **values}


def test_declared_defaults_pass_unchanged() -> None:
    namespace = notebook()
    before = dict(namespace)
    chapter.check(namespace)
    assert namespace == before


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("thresholds", "[0.05, 0.1, 0.5]", [0.05, 0.1, 0.5]),
        ("thresholds", [1, 0.5], [1.0, 0.5]),
        ("seeds", "[3, 4]", [3, 4]),
        ("lr", "0.1", 0.1),
        ("lr", 1, 1.0),
        ("decay", "None", None),
        ("decay", "null", None),
        ("decay", 0.5, 0.5),
        ("names", '["sgd", "sgd-g"]', ["sgd", "sgd-g"]),
    ],
)
def test_text_of_the_command_line_becomes_the_declared_type(name: str, given: Any, wanted: Any) -> None:
    namespace = notebook(f"{name} = {given!r}", **{name: given})
    chapter.check(namespace)
    assert namespace[name] == wanted and type(namespace[name]) is type(wanted)
    if isinstance(wanted, list):
        assert [type(entry) for entry in namespace[name]] == [type(entry) for entry in wanted]


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("profile", "fast", "parameter 'profile' = 'fast': expected one of 'smoke', 'laptop', 'paper'."),
        ("profile", 3, "parameter 'profile' = 3: expected text, got a whole number."),
        ("thresholds", "0.1", "'thresholds' = '0.1': expected a list with at least one entry, each a number"),
        ("thresholds", [], "'thresholds' = []: expected a list with at least one entry, each a number."),
        ("thresholds", "[0.1, 'x']", "expected a number, got text."),
        ("thresholds", [True], "expected a number, got True or False."),
        ("seeds", "[0.5]", "expected a whole number, got a number."),
        ("lr", "abc", "parameter 'lr' = 'abc': expected a number, got text."),
        ("augment", 1, "expected True or False, got a whole number."),
        ("lr", float("nan"), "expected a finite number."),
        ("thresholds", [0.1, float("inf")], "expected a finite number."),
        ("seeds", [0], "expected two or more whole numbers from 0 on, each once"),
        ("seeds", [0, 0], "expected two or more whole numbers from 0 on, each once"),
        ("seeds", [-1, 0], "expected two or more whole numbers from 0 on, each once"),
        ("jobs", 0, "expected 1 or more, or -1 for one a core."),
    ],
)
def test_wrong_values_are_refused_in_one_line(name: str, given: Any, said: str) -> None:
    namespace = notebook(f"{name} = {given!r}", **{name: given})
    before = dict(namespace)
    with pytest.raises(ValueError) as error:
        chapter.check(namespace)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert namespace == before


def test_unknown_parameter_is_refused_with_the_accepted_names() -> None:
    with pytest.raises(ValueError, match="unknown parameter 'threshold': this chapter accepts profile, "):
        chapter.check(notebook("threshold = 3", threshold=3))


def test_cells_run_by_hand_are_not_taken_for_parameters() -> None:
    namespace = notebook(figure=object(), losses=[1.0])
    namespace["In"] += ["figure = draw()", "losses = [1.0]"]
    chapter.check(namespace)


def test_choices_are_checked_for_each_entry() -> None:
    chapter.check(notebook(names=["sgd"]), names=("sgd", "sgd-g"))
    with pytest.raises(ValueError, match="'names' = \\['adam'\\]: expected one of 'sgd', 'sgd-g'"):
        chapter.check(notebook(names=["adam"]), names=("sgd", "sgd-g"))


def test_optional_hint_accepts_nothing_but_its_type_and_none() -> None:
    namespace = {"__annotations__": {"x": Optional[int]}, "x": 0.5}  # noqa: UP045 - papermill reads only this form
    with pytest.raises(ValueError, match="expected a whole number, got a number"):
        chapter.check(namespace)


def test_records_of_smoke_runs_stay_out_of_the_book(tmp_path, monkeypatch) -> None:
    (tmp_path / "book").mkdir()
    (tmp_path / "_toc.yml").touch()
    monkeypatch.chdir(tmp_path)
    assert chapter.records("laptop").as_posix() == chapter.records("paper").as_posix() == "book/records"
    assert chapter.records("smoke").as_posix() == "_build/records/smoke"
    monkeypatch.chdir(tmp_path / "book")  # where Jupyter starts a kernel
    assert chapter.records("laptop") == tmp_path / "book/records"
    with pytest.raises(ValueError, match="'fast' is not one of smoke, laptop, paper"):
        chapter.records("fast")


def test_records_outside_the_repository_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="not inside the repository"):
        chapter.records("laptop")


def test_benchmarks_of_the_device_drawn_come_first(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "book" / "benchmarks"
    folder.mkdir(parents=True)
    (tmp_path / "_toc.yml").touch()
    for name in ("step-cpu", "step-nvidia-h200", "train-cpu"):
        (folder / f"{name}.json").write_text(f'{{"from": "{name}"}}')
    monkeypatch.chdir(tmp_path)
    found = chapter.benchmarks("step", "nvidia-h200")
    assert list(found) == ["nvidia-h200", "cpu"] and found["cpu"] == {"from": "step-cpu"}
    with pytest.raises(ValueError, match="no record of device 'nvidia-h200'; there are: cpu"):
        chapter.benchmarks("train", "nvidia-h200")


def test_notebook_shows_one_line_and_no_frames() -> None:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell.instance()
    try:
        with capture_output() as shown:
            shell.run_cell("from riembn.pages import chapter\njobs: int = 0\nchapter.check(globals())")
    finally:
        InteractiveShell.clear_instance()
    assert "parameter 'jobs' = 0: expected 1 or more" in shown.stdout
    assert "Traceback" not in shown.stdout and "chapter.py" not in shown.stdout


def test_package_of_another_clone_is_refused(tmp_path, monkeypatch) -> None:
    for folder in ("book", "riembn"):
        (tmp_path / folder).mkdir()
    (tmp_path / "_toc.yml").touch()
    monkeypatch.chdir(tmp_path / "book")
    with pytest.raises(ValueError, match="but the kernel imports riembn from"):
        chapter.check(notebook())
