"""The compiled step: taken where it can be, equal to the other paths, and never required."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import riembn
from riembn.geometry import Layout
from riembn.kernels import c_library, cpu
from riembn.optim import PSISGD, SGDG, AdamG

CHANNEL = Layout()
OPTIMIZERS = [(SGDG, {}), (AdamG, {}), (PSISGD, dict(lr=0.05, momentum=0.9)), (PSISGD, dict(lr=0.05))]
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler on this machine"
)


@needs_compiler
def test_the_library_compiles_and_takes_ordinary_weights():
    assert c_library.library() is not None
    conv = torch.nn.Conv2d(8, 16, 3, groups=2).weight
    for p in (
        torch.randn(3, 4),
        conv,
        conv.to(memory_format=torch.channels_last),
        torch.randn(3, 4).double(),
    ):
        assert cpu.takes(p.detach(), CHANNEL)
    assert cpu.takes(torch.randn(4, 3), Layout(channels_per_row=2))
    assert cpu.takes(torch.randn(4, 3), Layout(row_dim=1, conv_groups=1, channels_per_row=None))


@pytest.mark.parametrize(
    "p, layout",
    [
        (torch.randn(4, 6)[:, ::2], CHANNEL),  # gaps
        (torch.randn(4, 6).T, CHANNEL),  # rows not contiguous
        (torch.randn(4, 6).bfloat16(), CHANNEL),
        (torch.randn(4, 6, 3, 3), Layout(row_dim=1)),
        (torch.randn(4, 6, device="meta"), CHANNEL),
    ],
)
def test_what_the_library_cannot_take_is_left(p, layout):
    assert not cpu.takes(p, layout)


def twins(optimizer, options, shapes, dtype, seed, memory_format=torch.contiguous_format):
    """The same weights under the compiled step and under the lists."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    starts = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    for foreach in (None, True):
        params = [
            torch.nn.Parameter(
                w.clone(memory_format=memory_format if w.dim() == 4 else torch.contiguous_format)
            )
            for w in starts
        ]
        made.append((params, optimizer(params, foreach=foreach, **options)))
    return made, generator


def agree(made, tolerance):
    (params, a), (others, b) = made
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
        for key, value in a.state[p].items() if p.numel() else ():
            torch.testing.assert_close(value, b.state[q][key], rtol=tolerance, atol=tolerance)


@needs_compiler
@given(
    rows=st.integers(1, 80),
    fan_in=st.integers(2, 700),
    which=st.sampled_from(range(len(OPTIMIZERS))),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    alpha=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_compiled_step_equals_lists_for_any_shape(rows, fan_in, which, dtype, alpha, seed):
    optimizer, options = OPTIMIZERS[which]
    if optimizer is not PSISGD:
        options = dict(options, alpha=alpha)
    made, generator = twins(optimizer, options, [(rows, fan_in), (3, 5)], dtype, seed)
    for _ in range(3):
        for shape_index in range(2):
            g = torch.randn(made[0][0][shape_index].shape, generator=generator, dtype=dtype)
            for params, _ in made:
                params[shape_index].grad = 0.1 * g / params[shape_index].detach().norm(dim=1, keepdim=True)
        for _, stepped in made:
            stepped.step()
    agree(made, 1e-5 if dtype == torch.float32 else 1e-12)


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 30_000), (4096, 2), (7, 3, 5, 5), (2048, 9)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_extreme_shapes_and_empty_last_parameter(shape, memory_format):
    for optimizer, options in OPTIMIZERS:
        made, generator = twins(optimizer, options, [shape, (0, 4)], torch.float32, 0, memory_format)
        for _ in range(2):
            g = 0.1 * torch.randn(shape, generator=generator)
            for params, stepped in made:
                params[0].grad, params[1].grad = g.clone(), torch.zeros(0, 4)
                stepped.step()
        agree(made, 1e-5)


@needs_compiler
@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-30, 1e-20, 1e18, 1e19, 1e30])
@pytest.mark.parametrize("radial", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("optimizer", [SGDG, AdamG])
def test_sizes_and_directions_at_which_dot_products_fail(optimizer, radial, size):
    made, generator = twins(optimizer, {}, [(5, 33)], torch.float32, 0)
    for _ in range(3):
        g = torch.randn(5, 33, generator=generator)
        g = size * (g + radial * made[0][0][0].detach())
        for params, stepped in made:
            params[0].grad = g.clone()
            stepped.step()
    # a gradient of subnormal numbers has few digits, one that is nearly all radial loses two of its seven
    agree(made, 3e-2 if size == 1e-44 else 1e-4 if radial == 100 else 1e-5)
    assert ((made[0][0][0].detach().norm(dim=1) - 1).abs() < 1e-6).all()


def test_fused_true_says_what_it_cannot_take():
    with pytest.raises(
        ValueError, match=r"fused=True, but parameter number 0 .*bfloat16.*leave fused=None"
    ) as caught:
        SGDG([torch.nn.Parameter(torch.randn(3, 4).bfloat16())], fused=True)
    assert "\n" not in str(caught.value)


@needs_compiler
def test_fused_true_and_automatic_are_one():
    for optimizer, options in OPTIMIZERS:
        p = torch.nn.Parameter(torch.randn(6, 20))
        q = torch.nn.Parameter(p.detach().clone())
        a, b = optimizer([p], fused=True, **options), optimizer([q], **options)
        for _ in range(3):
            p.grad = torch.randn(6, 20)
            q.grad = p.grad.clone()
            a.step()
            b.step()
        assert torch.equal(p, q)


def test_without_a_compiler_the_lists_do_it_quietly(monkeypatch, capfd):
    monkeypatch.setattr(cpu, "library", lambda: None)
    p = torch.nn.Parameter(torch.randn(6, 20))
    q = torch.nn.Parameter(p.detach().clone())
    a, b = SGDG([p]), SGDG([q], foreach=True)
    p.grad = torch.randn(6, 20)
    q.grad = p.grad.clone()
    a.step()
    b.step()
    assert torch.equal(p, q)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ValueError, match="a C compiler on the machine"):
        SGDG([p], fused=True)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A cache folder of the test's own, empty at first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget()
    yield tmp_path / "riembn"
    monkeypatch.undo()
    forget()


def forget():
    c_library.found.cache_clear()
    c_library.library.cache_clear()


def in_a_new_process():
    forget()
    return c_library.found()


COMPILING = "riembn: compiling the fused optimizer step (once)\n"


@needs_compiler
def test_the_library_is_built_once_into_the_cache_folder(cache, capfd):
    for notice in (COMPILING, ""):
        found = in_a_new_process()
        assert found.library is not None and found.library is c_library.library()
        assert capfd.readouterr().err == notice
        assert riembn.paths()["cpu"].startswith("fused (float32 or float64") and found.told in riembn.paths()["cpu"]
    (file,) = cache.iterdir()
    assert str(file) == found.told
    assert cache.stat().st_mode & 0o777 == file.stat().st_mode & 0o777 == 0o700


@needs_compiler
@pytest.mark.parametrize("damage", ["empty", "half", "bit", "writable", "link"])
def test_a_file_that_may_not_be_the_library_is_built_anew(cache, capfd, damage):
    in_a_new_process()
    (file,) = cache.iterdir()
    content = file.read_bytes()
    if damage == "writable":
        file.chmod(0o722)
    elif damage == "link":
        file.rename(cache / "elsewhere")
        file.symlink_to("elsewhere")
    else:
        at = len(content) // 2
        bad = {"empty": b"", "half": content[:at], "bit": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]}
        file.unlink()  # the old file is mapped into this process
        file.write_bytes(bad[damage])
        file.chmod(0o700)
    capfd.readouterr()
    found = in_a_new_process()
    assert found.library is not None and capfd.readouterr().err == COMPILING
    assert not Path(found.told).is_symlink() and Path(found.told).stat().st_mode & 0o777 == 0o700
    assert in_a_new_process().library is not None and capfd.readouterr().err == ""


@needs_compiler
def test_a_compiler_that_fails_is_told_of_once_and_its_message_kept(cache, monkeypatch, capfd, tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'rows.c: no such luck' >&2; exit 3\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", str(compiler))
    assert in_a_new_process().library is None
    (kept,) = cache.iterdir()
    said = capfd.readouterr().err
    assert said.count("\n") == 2 and str(kept) in said and str(compiler) in said
    assert "no such luck" in kept.read_text() and "ends with code 3" in kept.read_text()
    assert in_a_new_process().library is None and capfd.readouterr().err == ""
    assert riembn.paths()["cpu"].startswith("lists of tensors: ") and str(kept) in riembn.paths()["cpu"]
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")} "$@"\n')
    assert in_a_new_process().library is None  # not asked again
    kept.unlink()
    assert in_a_new_process().library is not None
    monkeypatch.setenv("CC", str(tmp_path / "missing"))
    assert in_a_new_process().library is None
    assert "No such file" in next(cache.glob("*.failed")).read_text()


@needs_compiler
def test_a_folder_of_another_user_or_none_is_not_used(cache, monkeypatch):
    in_a_new_process()
    cache.chmod(0o777)
    assert in_a_new_process().library is not None and cache.stat().st_mode & 0o777 == 0o700
    with monkeypatch.context() as other:
        other.setattr(c_library.os, "geteuid", lambda: cache.stat().st_uid + 1)
        found = in_a_new_process()
        assert found.library is None and "belongs to another user" in found.told
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    found = in_a_new_process()
    assert found.library is None and "/dev/null" in found.told


@needs_compiler
def test_no_memory_to_work_in_is_an_error(monkeypatch):
    p = torch.nn.Parameter(torch.randn(3, 4))
    before = p.detach().clone()
    monkeypatch.setattr(cpu, "_rows", lambda *_: (0, 2**58))  # nothing to move, 2^61 bytes a thread to move it in
    with pytest.raises(MemoryError, match="no memory for the fused optimizer step"):
        cpu.sgd_g([[p], [p], [torch.zeros(3, 4)]], CHANNEL, 0.1, 0.9, 0.1)
    assert torch.equal(p, before)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_rows_without_changing_them(threads):
    before = torch.get_num_threads()
    made, generator = twins(SGDG, {}, [(37, 11), (1, 90), (50, 3)], torch.float64, 0)
    try:
        for _ in range(2):
            for i in range(3):
                g = torch.randn(made[0][0][i].shape, generator=generator, dtype=torch.float64)
                for params, _ in made:
                    params[i].grad = g.clone()
            torch.set_num_threads(threads)
            for _, stepped in made:
                stepped.step()
    finally:
        torch.set_num_threads(before)
    agree(made, 1e-12)
