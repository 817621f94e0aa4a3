"""The command line says in one line what is wrong, and in its exit code whether all was done."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import riembn.__main__ as main_module
from riembn.__main__ import main
from riembn.experiment import Store, preset
from riembn.experiment.config import FIELDS
from riembn.training import loop, train

TINY = ["--width", "0.0625", "--train-size", "96", "--batch-size", "32", "--epochs", "1"]
SMALL = {"width": 0.0625, "train_size": 96, "batch_size": 32, "epochs": 1}


def run(capsys, *words):
    """Exit code, stdout and stderr of a command."""
    try:
        code = main([str(word) for word in words])
    except SystemExit as end:  # argparse's way out
        code = end.code
    out, err = capsys.readouterr()
    return code, out, err


def test_train_keeps_a_record_and_show_lists_it(tmp_path, capsys):
    code, out, err = run(capsys, "train", "--preset", "vgg-11/digits/sgd", *TINY, "--store", tmp_path)
    config = preset("vgg-11/digits/sgd", **SMALL)
    assert code == 0 and err == "" and out.startswith(config.digest()) and "test " in out
    assert Store(tmp_path).get(config) is not None
    assert run(capsys, "show", "--store", tmp_path) == (0, out, "")


def test_show_tells_the_runs_of_a_method_apart(tmp_path, capsys):
    words = ["--preset", "vgg-11/digits/sgd-g", "--preset", "vgg-11/digits/sgd", *TINY, "--store", tmp_path]
    assert run(capsys, "sweep", *words, "--grid", "grad_clip=0.1,none")[0] == 0
    lines = run(capsys, "show", "--store", tmp_path)[1].splitlines()
    ends = sorted(line.rsplit("  ", 1)[1] for line in lines if "sgd-g" in line)
    assert len(lines) == 3 and ends == ["grad_clip=0.1", "grad_clip=none"]
    assert not any("=" in line for line in lines if "sgd-g" not in line)


def test_train_works_without_a_store(capsys):
    assert run(capsys, "train", "--preset", "vgg-11/digits/sgd", *TINY)[0] == 0


def test_dry_run_prints_every_field_and_trains_nothing(tmp_path, capsys):
    words = ["--preset", "wrn-28-10/cifar10/sgd-g", "--profile", "paper", "--seed", "3"]
    code, out, _ = run(capsys, "train", *words, "--dry-run", "--store", tmp_path / "store")
    config = preset("wrn-28-10/cifar10/sgd-g", profile="paper", seed=3)
    shown = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0 and shown.keys() == {*FIELDS, "digest"}
    assert (shown["digest"], shown["drops"], shown["beta2"]) == (config.digest(), "60,120,160", "none")
    assert shown["augment"] == "true"
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("options=betas=(0.8,0.99);eps=1e-3,betas=[0.9,0.9]", ['betas=[0.8, 0.99];eps=0.001', 'betas=[0.9, 0.9]']),
        ("options=none,betas=(0.9,0.9):foreach=True", ["none", "betas=[0.9, 0.9];foreach=true"]),
        ("options=foreach=none,foreach=True", ["none", "foreach=true"]),
    ],
)
def test_values_in_brackets_are_one(capsys, words, found):
    code, out, _ = run(capsys, "sweep", "--preset", "vgg-11/digits/adamw", "--grid", words, "--dry-run")
    assert code == 0
    assert [line.split(" options=")[1] for line in out.splitlines() if line.startswith("digest")] == found


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("lr", "0.5", 0.5),
        ("seed", "7", 7),
        ("grad-clip", "none", None),
        ("grad_clip", "0.5", 0.5),
        ("train-size", "none", None),
        ("drops", "1:3", (1, 3)),
        ("drops", "1,3", (1, 3)),
        ("drops", "none", ()),
        ("augment", "true", True),
        ("network", "vgg-13", "vgg-13"),
        ("rule", "invariant", "invariant"),
        ("options", "foreach=True;maximize=true", {"foreach": True, "maximize": True}),
        ("rest-options", "foreach=None", {}),
        ("rest-options", "foreach=none", {}),
    ],
)
def test_fields_are_options(capsys, field, text, value):
    code, out, _ = run(capsys, "train", "--preset", "vgg-11/digits/sgd-g", f"--{field}", text, "--dry-run")
    expected = preset("vgg-11/digits/sgd-g", **{field.replace("-", "_"): value})
    assert code == 0 and expected.digest() in out


def test_sweep_fills_a_grid(tmp_path, capsys):
    words = ["--preset", "vgg-11/digits/sgd-g", "--preset", "vgg-11/digits/sgd", *TINY, "--seeds", "0-1"]
    words += ["--grid", "grad_clip=0.1,none", "--store", tmp_path]
    code, out, _ = run(capsys, "sweep", *words, "--dry-run")
    assert code == 0 and out.count("digest") == 6 and "record is there" not in out  # of sgd, 2 of 4 are equal
    code, out, _ = run(capsys, "sweep", *words)
    assert code == 0 and out == f"6 runs in {tmp_path}, 0 of them diverged\n"
    assert run(capsys, "sweep", *words, "--dry-run")[1].count("(its record is there)") == 6


def test_failed_runs_are_shown_and_retried(tmp_path, capsys, monkeypatch):
    words = ["--preset", "vgg-11/digits/sgd", *TINY, "--store", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "environment", lambda device: {}["device"])
        assert run(capsys, "sweep", *words)[0] == 1
    code, _, err = run(capsys, "sweep", *words)
    assert code == 1 and "KeyError: 'device'" in err and "--retry-failed" in err
    name = preset("vgg-11/digits/sgd", **SMALL).name
    assert run(capsys, "show", "--store", tmp_path)[1] == f"{name}  failed: KeyError: 'device'\n"
    assert run(capsys, "sweep", *words, "--retry-failed")[0] == 0
    assert "failed" not in run(capsys, "show", "--store", tmp_path)[1]


def test_how_a_run_is_computed_is_no_part_of_its_name(tmp_path, capsys, monkeypatch):
    seen = {}

    def looking(config, **options):
        seen.update(options)
        return train(config)

    monkeypatch.setattr(main_module, "train", looking)
    words = ["--compile", "--checkpoint-minutes", "2.5", "--tensorboard", "curves"]
    code, out, _ = run(capsys, "train", "--preset", "vgg-11/digits/sgd", *TINY, *words)
    assert code == 0 and out.startswith(preset("vgg-11/digits/sgd", **SMALL).digest())
    assert seen["compile"] and seen["tensorboard"] == "curves"
    assert seen["checkpoint_minutes"] == 2.5


LIMITED = """
import resource, sys
from riembn.__main__ import main
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main())
"""


def test_disk_that_fills_up_costs_nothing_that_was_there(tmp_path, capsys):
    words = ["train", "--preset", "vgg-11/digits/sgd", *TINY, "--epochs", "2", "--store", tmp_path]
    config, store = preset("vgg-11/digits/sgd", **{**SMALL, "epochs": 2}), Store(tmp_path)

    def within(limit):
        start = [sys.executable, "-c", LIMITED, str(limit), *map(str, words)]
        done = subprocess.run(start, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    code, out, err = within(20_000)  # no room for a checkpoint
    assert (code, out, err.count("\n")) == (1, "", 1) and "cannot write" in err and "File too large" in err
    assert store.get(config) is None and not list(tmp_path.rglob("*.pt")) + list(tmp_path.rglob("*.tmp"))
    record = train(config, store=tmp_path / "elsewhere")
    assert run(capsys, *words)[0] == 0 and store.get(config).same_result(record)
    (path,) = tmp_path.glob("*.json")
    path.unlink()
    code, _, err = within(1000)  # the checkpoints are there, and no room for the record
    assert code == 1 and "cannot write" in err and ".json" in err and store.get(config) is None
    assert run(capsys, *words)[0] == 0 and store.get(config).same_result(record)


def test_run_that_diverges_or_fails_is_exit_code_one(tmp_path, capsys):
    base = ["--preset", "vgg-11/digits/sgd", *TINY, "--store", tmp_path]
    code, out, _ = run(capsys, "train", *base, "--lr", "1e18")
    assert code == 1 and "diverged at step" in out
    some = [word for word in base if word not in ("--train-size", "96")]
    code, _, err = run(capsys, "sweep", *some, "--grid", "train_size=96,999999")
    assert code == 1 and "1 of 2 runs failed" in err and "train_size=999999, holdout=0 do not fit" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["train"], "required: --preset"),
        (["train", "--preset", "vgg-13/cifar10/sgdg"], "unknown method 'sgdg'"),
        (["train", "--preset", "vgg-13/cifar10/sgd", "--profile", "desktop"], "unknown profile 'desktop'"),
        (
            ["train", "--preset", "vgg-13/cifar10/sgd", "--lr", "fast"],
            "lr='fast' is not accepted; give a finite number in (0, inf)",
        ),
        (["train", "--preset", "vgg-13/cifar10/sgd", "--lr", "-1"], "lr=-1.0 is not accepted"),
        (["train", "--preset", "vgg-13/cifar10/sgd", "--epochs", "1.5"], "give a whole number"),
        (["train", "--preset", "vgg-13/cifar10/sgd", "--augment", "maybe"], "give True or False"),
        (["train", "--preset", "vgg-13/cifar10/sgd", "--drops", "a"], "give whole numbers of at least 1"),
        (
            ["train", "--preset", "vgg-13/cifar10/sgd", "--learning-rate", "1"],
            "unrecognized arguments: --learning",
        ),
        (["train", "--preset", "vgg-13/cifar10/sgd", "--epoch", "1"], "unrecognized arguments: --epoch"),
        (
            ["train", "--preset", "vgg-13/cifar10/sgd", "--preset", "vgg-13/cifar10/sgd-g"],
            "--preset is given 2 times; give one, or use sweep",
        ),
        (["sweep", "--preset", "vgg-13/cifar10/sgd"], "--store is missing"),
        (["sweep", "--preset", "vgg-13/cifar10/sgd", "--seeds", "2-1"], "give seeds such as 0,1,2 or 0-2"),
        (["sweep", "--preset", "vgg-13/cifar10/sgd", "--store", "s", "--grid", "clip=1"], "give FIELD=VALUE"),
        (
            ["sweep", "--preset", "vgg-13/cifar10/sgd", "--store", "s", "--grid", "lr=a"],
            "lr='a' is not accepted",
        ),
        (["show", "--store", "no/such/store"], "there is no store no/such/store"),
        (["verify", "--store", "no/such/store"], "there is no store no/such/store"),
        (["merge", "no/such/store", "--store", "s"], "there is no store no/such/store"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words)
    assert code == 2 and out == "" and message in err
    assert err.count("\n") == 1 and err.startswith("python -m riembn")
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_interrupted_command_promises_only_what_it_keeps(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "train", interrupted)
    monkeypatch.setattr(Store, "records", interrupted)
    tmp_path.joinpath("store").mkdir()
    one, stored = ["train", "--preset", "vgg-11/digits/sgd"], ["--store", tmp_path / "store"]
    for words, goes_on in (
        ([*one, *stored], True),
        (one, False),
        ([*one, *stored, "--fresh"], False),
        (["show", *stored], False),
    ):
        code, _, err = run(capsys, *words)
        assert code == 130 and "interrupted" in err and ("the same command goes on" in err) == goes_on


def test_store_is_kept_from_the_command_line(tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    for store, seed in ((one, 0), (two, 0), (two, 1)):
        assert (
            run(capsys, "train", "--preset", "vgg-11/digits/sgd", *TINY, "--seed", seed, "--store", store)[0]
            == 0
        )
    assert run(capsys, "merge", two, "--store", one) == (0, f"1 records taken over from {two}\n", "")
    assert run(capsys, "merge", two, "--store", one) == (0, f"0 records taken over from {two}\n", "")
    assert run(capsys, "verify", "--store", one)[0] == 0
    assert len(list(one.rglob("*.pt"))) == 1
    assert run(capsys, "prune", "--store", one)[0] == 0 and not list(one.rglob("*.pt"))
    code, out, _ = run(capsys, "export", "--store", one, "--csv", tmp_path / "all.csv")
    lines = (tmp_path / "all.csv").read_text().splitlines()
    assert (
        code == 0 and out.startswith("2 rows") and len(lines) == 3 and lines[0].startswith("network,dataset,")
    )
    (damaged, _) = sorted(one.glob("*.json"))
    damaged.write_text(damaged.read_text()[:-20])
    code, out, _ = run(capsys, "verify", "--store", one)
    assert code == 1 and out.count("\n") == 1 and str(damaged) in out


def test_export_of_an_empty_store_says_so_and_leaves_nothing(tmp_path, capsys):
    (tmp_path / "store").mkdir()
    code, out, err = run(capsys, "export", "--store", tmp_path / "store", "--csv", tmp_path / "new" / "all.csv")
    assert (code, out, err.count("\n")) == (2, "", 1) and "no records in" in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EROFS])
def test_store_that_cannot_be_written_is_no_bad_input_whatever_the_reason(error, tmp_path, capsys, monkeypatch):
    def refused(*_, **__):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(Path, "mkdir", refused)
    code, out, err = run(capsys, "train", "--preset", "vgg-11/digits/sgd", *TINY, "--store", tmp_path / "store")
    assert (code, out, err.count("\n")) == (1, "", 1) and "cannot write to" in err


def test_a_command_whose_reader_has_gone_ends_without_a_word():
    reader, writer = os.pipe()
    os.close(reader)
    words = ["train", "--preset", "vgg-11/digits/sgd", "--dry-run"]
    done = subprocess.run([sys.executable, "-m", "riembn", *words], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")


def test_module_runs():
    found = subprocess.run(
        [sys.executable, "-m", "riembn", "--help"], capture_output=True, text=True, check=True
    )
    assert all(command in found.stdout for command in ("train", "sweep", "show"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grid", "momentum=0", "--grid", "momentum=0.5"], "momentum is given twice"),
        (["--grid", "seed=0,1", "--seeds", "2,3"], "seed is given twice"),
        (["--momentum", "0.5", "--grid", "momentum=0,0.9"], "momentum is given twice"),
        (["--grad-clip", "0.5"], "grad_clip=0.5 does not act with method='sgd'"),
        (["--grid", "alpha=0.1,0.2"], "alpha=0.1 does not act with method='sgd'"),
        (["--jobs", "0"], "n_jobs=0 is not accepted; give 1 or more"),
        (["--device", "tpu"], "device='tpu' cannot be had"),
        (["--plugin", "nowhere.py"], "there is no file nowhere.py"),
    ],
)
def test_nothing_that_was_asked_for_is_lost(tmp_path, capsys, words, message):
    base = ["sweep", "--preset", "vgg-11/digits/sgd", *TINY, "--store", tmp_path / "s"]
    code, out, err = run(capsys, *base, *words)
    assert code == 2 and out == "" and message in err and err.count("\n") == err.count("sweep: ") == 1
    assert not (tmp_path / "s").exists()


def test_one_bad_record_does_not_hide_the_others(tmp_path, capsys):
    for seed in ("0", "1"):
        run(capsys, "train", "--preset", "vgg-11/digits/sgd", *TINY, "--seed", seed, "--store", tmp_path)
    first, second = sorted(tmp_path.glob("*.json"))
    first.write_text(first.read_text()[:200])
    for words in (["show"], ["report"], ["report", "--claims"], ["export", "--csv", tmp_path / "t.csv"], ["prune"]):
        code, out, err = run(capsys, words[0], *words[1:], "--store", tmp_path)
        assert code == 1 and first.name in err and err.count("\n") == 1 and out
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 2
    assert run(capsys, "show", "--store", tmp_path)[1].startswith(second.stem[-16:])


def test_altered_number_is_noticed(tmp_path, capsys):
    run(capsys, "train", "--preset", "vgg-11/digits/sgd", *TINY, "--store", tmp_path)
    (path,) = tmp_path.glob("*.json")
    text = path.read_text()
    line = next(line for line in text.splitlines() if '"test_error"' in line)
    path.write_text(text.replace(line, line.replace("[", "[1")))
    code, out, _ = run(capsys, "verify", "--store", tmp_path)
    assert code == 1 and "the checksum differs" in out


def test_design_says_what_is_missing(tmp_path, capsys):
    code, out, err = run(capsys, "design", "A", "--store", tmp_path, "--dry-run")
    assert (code, err) == (0, "") and out == "block A, study 1: 280 runs, 240 to be run next\n"
    assert run(capsys, "design", "Z", "--store", tmp_path)[0] == 2


@pytest.mark.parametrize("command", ["show", "report"])
def test_an_empty_store_is_said_to_be_empty(capsys, tmp_path, command):
    assert run(capsys, command, "--store", tmp_path)[:2] == (0, f"no records in {tmp_path}\n")
