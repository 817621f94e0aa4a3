"""Which targets are reached? Each is compared with the whole interval of what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Target = dict[str, Any]
_CPU_SETS = ("vgg-13", "resnet-18", "wrn-28-10")
_LARGE = 10e6  # bytes of weights, beside which what the libraries keep for themselves is little
_SLOW = ("geoopt RiemannianSGD", "SGD-G plain eager")


def verdict(bound: float, at_most: bool, value: Mapping[str, float | None]) -> str:
    """``reached`` or ``not reached`` if the whole interval says so, else ``undecided``; so is one without ends."""
    low, high = value["low"], value["high"]
    if low is None or high is None:
        return "undecided"
    if (high <= bound) if at_most else (low >= bound):
        return "reached"
    return "not reached" if (low > bound if at_most else high < bound) else "undecided"


def step_targets(record: Mapping[str, Any]) -> list[Target]:
    """The targets for an optimizer step on the record's device, each with its value and verdict."""
    return [*_times(record), *_memory(record)]


def train_targets(record: Mapping[str, Any]) -> list[Target]:
    """The targets for a run, for those parts that were measured."""
    found = []
    if sweep := record.get("sweep"):
        for name, when in (("first", ""), ("next", ", workers there already")):
            what = f"sweep of {sweep['runs']} smoke runs, one worker / two{when}"
            found.append(_target(what, "smoke", 1.7, False, sweep["speedup"][name]))
    if augmentation := record.get("augmentation"):
        what = "augmentation, time of a DataLoader / on the device"
        found.append(
            _target(what, f"{augmentation['images']:,} images", 10.0, False, augmentation["speedup"])
        )
    if loop := record.get("loop"):
        found.append(_target("training loop / bare steps", loop["network"], 1.03, True, loop["ratio"]))
    if throughput := record.get("throughput"):
        what = "share of the bfloat16 matrix rate"
        found.append(_target(what, throughput["network"], 0.4, False, throughput["share"]))
    return found


def split_targets(record: Mapping[str, Any]) -> list[Target]:
    """The targets for splits: no verdict is wrong, and none takes long or much memory."""
    networks = record["networks"]
    done = [one for one in networks if "error" not in one]
    wrong = sum(len(one["check"]["wrong"]) for one in done) + len(networks) - len(done)
    found = [_most("verdicts that brute force denies, and failures", f"{len(networks)} networks", 0, [wrong])]
    if done:
        found.append(_most("passes", f"{len(done)} networks", 16, [one["passes"] for one in done]))
    large = [one for one in done if one["weight_bytes"] >= _LARGE and one["peak_bytes"]]
    if large:
        peaks = [one["peak_bytes"] / one["weight_bytes"] for one in large]
        found.append(_most("memory / weights", f"{len(large)} networks of {_LARGE / 1e6:.0f} MB and more", 5.0, peaks))
    return found


def _most(what: str, name: str, bound: float, values: Iterable[float]) -> Target:
    return _target(what, name, bound, True, dict.fromkeys(("median", "low", "high"), max(values)))


def _times(record: Mapping[str, Any]) -> Iterator[Target]:
    cuda = record["kind"] == "cuda"
    for name in ("wrn-28-10",) if cuda else _CPU_SETS:
        yield from _at(record, name, "SGD-G fused / SGD fused", 1.05 if cuda else 1.2)
        yield from _at(record, name, "Adam-G fused / Adam fused", 0.8 if cuda else 1.0)
        if not cuda:
            yield from _at(record, name, "SGD-G foreach / SGD fused", 5.0)
        for slow in _SLOW:
            yield from _at(record, name, f"{slow} / SGD-G fused", 10.0, at_most=False)
        result = _result(record, name, "SGD-G fused")
        if cuda and result:
            share = result["share_of_copy"]
            yield _target("SGD-G fused, share of copy bandwidth", name, 0.85, False, share)
    for captured in record.get("captured") or ():
        if captured["name"] == "wrn-28-10":
            yield from _captured(captured)
    if whole := record.get("training_step"):
        what = f"training step of {whole['network']}, SGD-G / SGD fused"
        yield _target(what, whole["network"], 1.02, True, whole["ratio"])


def _captured(told: Mapping[str, Any]) -> Iterator[Target]:
    """What is asked of a step on a GPU, of the device alone."""
    of, how = {one["name"]: one for one in told["results"]}, "replayed from a CUDA graph"
    for own, base, bound in (("SGD-G", "SGD", 1.05), ("Adam-G", "Adam", 0.8)):
        yield _target(f"{own} / {base}, {how}", told["name"], bound, True, of[own]["ratios"][base])
    yield _target(f"SGD-G, share of copy bandwidth, {how}", told["name"], 0.85, False, of["SGD-G"]["share_of_copy"])


def _memory(record: Mapping[str, Any]) -> Iterator[Target]:
    name = "wrn-28-10"
    for path, bound in (("fused", 0.01), ("foreach", 3.0)):
        for method in ("SGD-G", "Adam-G", "PSI-SGD"):
            if result := _result(record, name, f"{method} {path}"):
                share = result["extra_bytes"] / (4 * _set(record, name)["parameters"])
                what = f"{method} {path}, memory of a step / weights"
                yield _target(what, name, bound, True, dict.fromkeys(("median", "low", "high"), share))


def _at(
    record: Mapping[str, Any], name: str, what: str, bound: float, *, at_most: bool = True
) -> Iterator[Target]:
    own, base = what.split(" / ")
    result = _result(record, name, own)
    if result and base in result["ratios"]:
        yield _target(what, name, bound, at_most, result["ratios"][base])


def _target(what: str, name: str, bound: float, at_most: bool, value: Mapping[str, float | None]) -> Target:
    return {
        "what": what,
        "set": name,
        "bound": bound,
        "at_most": at_most,
        **value,
        "verdict": verdict(bound, at_most, value),
    }


def _set(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next((one for one in record.get("sets", []) if one["name"] == name), {"results": []})


def _result(record: Mapping[str, Any], name: str, contestant: str) -> Mapping[str, Any] | None:
    return next((one for one in _set(record, name)["results"] if one["name"] == contestant), None)
