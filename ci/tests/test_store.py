"""Records are whole or not there, and a checkpoint that is damaged is known."""

import errno
import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from riembn.experiment import Record, Store, preset
from riembn.experiment.checkpoint import Checkpoints
from riembn.experiment.config import digest_of
from riembn.experiment.files import write_whole
from riembn.experiment.record import COLUMNS
from riembn.training import train

CONFIG = preset("vgg-11/digits/sgd-g", epochs=2)


def record_of(config=CONFIG, **changes):
    columns = {name: [0.25, 1.5] for name in COLUMNS} | {
        "epoch": [1, 2],
        "step": [22, 45],
        "clipped": [None, 0.5],
    }
    return Record(**{"config": config, "status": "finished", "columns": columns, **changes})


def test_record_comes_back_equal(tmp_path):
    store = Store(tmp_path / "new" / "store")
    assert store.get(CONFIG) is None and list(store.records()) == []
    record = record_of(environment={"device": "cpu", "dirty": None})
    path = store.put(record)
    assert store.get(CONFIG) == record and list(store.records()) == [record]
    assert CONFIG.digest() in path.name and store.get(CONFIG.replace(seed=1)) is None


def test_record_is_text_with_a_line_a_column():
    lines = record_of().to_json().splitlines()
    for name in COLUMNS:
        assert sum(line.strip().startswith(f'"{name}":') for line in lines) == 1
    assert len(lines) == len(COLUMNS) + 13


def test_frame_is_tidy(tmp_path):
    store = Store(tmp_path)
    assert store.frame().empty
    store.put(record_of())
    store.put(record_of(CONFIG.replace(grad_clip=None)))
    store.put(record_of(CONFIG.replace(method="sgd")))
    frame = store.frame()
    assert len(frame) == 6 and list(frame["epoch"]) == [1, 2] * 3
    clips = frame.groupby("method")["grad_clip"].unique()
    assert sorted(clips["sgd-g"]) == [0.1, float("inf")]
    assert frame.loc[frame["method"] == "sgd", "grad_clip"].isna().all()
    assert frame["clipped"].dtype == float and frame["train_size"].dtype == float


def test_run_that_diverged_at_once_is_in_the_frame():
    record = record_of(status="diverged", diverged_step=3, columns={name: [] for name in COLUMNS})
    frame = record.frame()
    assert list(frame["epoch"]) == [0] and list(frame["status"]) == ["diverged"]
    assert frame["test_error"].isna().all()


def test_record_of_an_older_recipe_is_read_but_not_taken_for_a_new_one(tmp_path):
    old = record_of(recipe=0)
    (tmp_path / "old.json").write_text(old.to_json())
    (found,) = Store(tmp_path).records()
    assert found == old and found.digest == digest_of(CONFIG, 0) != CONFIG.digest()
    assert Store(tmp_path).get(CONFIG) is None


DAMAGES = {
    "half a file": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "no object": lambda text: "[]",
    "another schema": lambda text: text.replace('"schema": 3', '"schema": 9'),
    "an older schema": lambda text: text.replace('"schema": 3', '"schema": 2'),
    "a field changed": lambda text: text.replace('"alpha": 0.1', '"alpha": 0.2'),
    "a field refused": lambda text: text.replace('"alpha": 0.1', '"alpha": -1'),
    "an unknown field": lambda text: text.replace('"alpha": 0.1', '"alpha": 0.1, "gamma": 1'),
    "a column cut": lambda text: text.replace('"train_loss": [0.25, 1.5]', '"train_loss": [0.25]'),
    "a column lost": lambda text: text.replace('"train_loss"', '"train_lost"'),
    "not a number": lambda text: text.replace('"train_loss": [0.25, 1.5]', '"train_loss": [0.25, NaN]'),
    "a word": lambda text: text.replace('"train_loss": [0.25, 1.5]', '"train_loss": [0.25, "1.5"]'),
    "a column that is no list": lambda text: text.replace('"train_loss": [0.25, 1.5]', '"train_loss": 3'),
    "unfinished": lambda text: text.replace('"epochs": 2', '"epochs": 3'),
    "no status": lambda text: text.replace('"status"', '"state"'),
    "another status": lambda text: text.replace('"finished"', '"started"'),
    "another kind of configuration": lambda text: json.dumps({**json.loads(text), "config": []}),
    "another kind of columns": lambda text: json.dumps({**json.loads(text), "columns": []}),
    "no environment": lambda text: text.replace('"environment"', '"surroundings"'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_record_is_named(tmp_path, damage):
    store = Store(tmp_path)
    path = store.put(record_of())
    damaged = DAMAGES[damage](path.read_text())
    assert damaged != path.read_text()
    path.write_text(damaged)
    for read in (lambda: store.get(CONFIG), lambda: list(store.records())):
        with pytest.raises(ValueError) as caught:
            read()
        assert str(path) in str(caught.value) and "remove it to run it again" in str(caught.value)


def test_record_that_is_not_finite_cannot_be_made():
    columns = {name: [1.0, float("nan")] for name in COLUMNS}
    with pytest.raises(ValueError, match="no finite number"):
        record_of(columns=columns)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "record.json"
    write_whole(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(
        OSError, match=r"cannot write .*record.json: No space left on device; nothing was changed"
    ):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["record.json"]


def test_store_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is not a folder"):
        Store(tmp_path / "file")
    with pytest.raises(OSError, match="cannot write"):
        Store(tmp_path / "file" / "below").put(record_of())


def read_only(*_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_read_only_store_is_read_and_refuses_new_runs_in_one_line(tmp_path, monkeypatch):
    config = preset("vgg-11/digits/sgd", width=1 / 16, train_size=96, batch_size=32, epochs=1)
    record = train(config, store=tmp_path)
    monkeypatch.setattr(tempfile, "mkstemp", read_only)
    monkeypatch.setattr(os, "open", read_only)
    assert train(config, store=tmp_path) == record
    for new in (config.replace(seed=1), config):
        with pytest.raises(OSError, match="Read-only file system") as caught:
            train(new, store=tmp_path, resume=False)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
        assert "choose another store" in str(caught.value)
    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(OSError, match="cannot write to .*: Read-only file system"):
        train(config.replace(seed=1), store=tmp_path)
    assert Store(tmp_path).get(config) == record


def test_failure_is_noted_until_there_is_a_record(tmp_path):
    store = Store(tmp_path)
    assert store.failure(CONFIG) is None and store.failures() == {}
    store.note_failure(CONFIG, "Traceback\nValueError: why")
    assert store.failure(CONFIG).endswith("why") and store.failures().keys() == {CONFIG.name}
    assert list(store.records()) == [] and store.failure(CONFIG.replace(seed=1)) is None
    store.put(record_of())
    assert store.failure(CONFIG) is None


def test_store_is_verified(tmp_path):
    store = Store(tmp_path)
    path = store.put(record_of())
    assert store.verify() == []
    path.rename(tmp_path / "renamed.json")
    store.put(record_of(CONFIG.replace(seed=1))).write_text("{")
    named, damaged = sorted(store.verify(), key=len)
    assert "renamed.json holds the run" in named and f"call it {path.name}" in named
    assert "is no record that can be read" in damaged


def test_merge_takes_all_or_nothing(tmp_path):
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    here.put(record_of())
    there.put(record_of(environment={"device": "another"}))
    there.put(record_of(CONFIG.replace(seed=1)))
    other = there.put(record_of(CONFIG.replace(seed=2)))
    whole = other.read_text()
    other.write_text(whole[:-9])
    with pytest.raises(ValueError, match="is no record"):
        here.merge(there)
    assert len(list(here.records())) == 1
    other.write_text(whole)
    assert here.merge(there.path) == 2 and here.merge(there) == 0
    assert here.get(CONFIG).environment == {}  # equal numbers: one's own stays
    different = {name: [0.5, 1.5] for name in COLUMNS}
    there.put(record_of(columns=different))
    with pytest.raises(ValueError, match="one run with different numbers"):
        here.merge(there)


def test_prune_removes_checkpoints_of_finished_runs_only(tmp_path):
    store = Store(tmp_path)
    store.put(record_of())
    unfinished = CONFIG.replace(seed=1)
    for config in (CONFIG, unfinished):
        store.checkpoints(config).save(1, {"w": torch.zeros(1000)})
    assert store.prune() > 4000 and store.prune() == 0
    assert store.checkpoints(CONFIG).newest() is None
    assert store.checkpoints(unfinished).newest()["epoch"] == 1


def checkpoints(tmp_path, digest="d"):
    return Checkpoints(tmp_path / "run", digest=digest)


def test_checkpoint_comes_back_and_two_are_kept(tmp_path):
    kept = checkpoints(tmp_path)
    assert kept.newest() is None
    for epoch in (1, 2, 3):
        kept.save(epoch, {"model": {"w": torch.full((3,), float(epoch))}, "columns": {"a": [1, None]}})
    assert sorted(os.listdir(kept.folder)) == ["epoch-00002-step-0000000.pt", "epoch-00003-step-0000000.pt"]
    state = kept.newest()
    assert state["epoch"] == 3 and state["columns"] == {"a": [1, None]}
    assert torch.equal(state["model"]["w"], torch.full((3,), 3.0))
    kept.keep_last()
    assert os.listdir(kept.folder) == ["epoch-00003-step-0000000.pt"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_damaged_checkpoint_is_set_aside_and_the_one_before_used(tmp_path, damage):
    kept = checkpoints(tmp_path)
    kept.save(1, {"w": torch.zeros(1000)})
    kept.save(2, {"w": torch.ones(1000)})
    newest = kept.folder / "epoch-00002-step-0000000.pt"
    content = bytearray(newest.read_bytes())
    if damage == "cut":
        content = content[:-100]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage == "empty":
        content = bytearray()
    else:
        checkpoints(tmp_path / "other", digest="e").save(2, {"w": torch.ones(1000)})
        content = (tmp_path / "other" / "run" / "epoch-00002-step-0000000.pt").read_bytes()
    newest.write_bytes(bytes(content))
    with pytest.warns(
        UserWarning, match=r"epoch-00002-.*pt is damaged .* set aside as epoch-00002-.*damaged"
    ):
        state = kept.newest()
    assert state["epoch"] == 1 and not state["w"].any()
    assert sorted(os.listdir(kept.folder)) == [
        "epoch-00001-step-0000000.pt",
        "epoch-00002-step-0000000.damaged",
    ]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), MemoryError(), OSError(5, "I/O error")])
def test_checkpoint_that_cannot_be_read_now_is_kept(tmp_path, monkeypatch, error):
    kept = checkpoints(tmp_path)
    kept.save(1, {"w": torch.ones(3)})

    def failing(*_, **__):
        raise error

    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(torch, "load", failing)
        kept.newest()
    assert kept.newest()["w"].all()


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    kept = checkpoints(tmp_path)
    kept.save(1, {"w": torch.zeros(3)})
    (kept.folder / ".epoch-00002-step-0000000.pt.x1.tmp").write_bytes(b"half")
    kept.save(1, {"w": torch.ones(3)}, steps=4)
    assert sorted(os.listdir(kept.folder)) == ["epoch-00001-step-0000000.pt", "epoch-00001-step-0000004.pt"]
    assert kept.newest()["w"].all()


def test_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    kept = checkpoints(tmp_path)
    kept.save(1, {"w": Evil()})
    with pytest.warns(UserWarning, match="is damaged"):
        assert kept.newest() is None
    assert not (tmp_path / "ran").exists()
    assert pickle.loads(pickle.dumps(Evil())) is None and (tmp_path / "ran").exists()  # it would have


HOLD = """
import sys, time
from riembn.experiment import Store, preset
with Store(sys.argv[1]).lock(preset("vgg-11/digits/sgd-g", epochs=2)).acquire(timeout=0):
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_dies_with_its_process(tmp_path):
    from filelock import Timeout

    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Timeout):
            Store(tmp_path).lock(CONFIG).acquire(timeout=0)
        with Store(tmp_path).lock(CONFIG.replace(seed=1)).acquire(timeout=0):
            pass  # another run is free
        holder.kill()
    with Store(tmp_path).lock(CONFIG).acquire(timeout=30):
        pass


def test_digest_and_schema_stand_in_the_file(tmp_path):
    content = json.loads(Store(tmp_path).put(record_of()).read_text())
    assert content["digest"] == CONFIG.digest() and content["schema"] == 3
    assert content["config"] == CONFIG.as_dict()
