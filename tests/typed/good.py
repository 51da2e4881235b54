"""What a user may write: type checkers find nothing wrong with it, and it runs."""

import json
import operator
import warnings
from collections.abc import Iterable
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gradclip
from gradclip import monitor, thresholds

Array = NDArray[np.float32]


def leaves() -> list[Array]:
    return [np.full((2, 3), 3, np.float32), np.full(4, 4, np.float32)]


def in_place() -> None:
    grads, params = leaves(), leaves()
    reports: list[gradclip.ClipReport] = [
        gradclip.clip_by_value_(grads, 1.0),
        gradclip.clip_by_value_(grads, -1, np.float32(1)),
        gradclip.clip_by_norm_(grads, 1.0, axis=0, ord=1),
        gradclip.clip_by_norm_(grads, [1.0, 0.5]),
        gradclip.clip_by_norm_(grads, {"0": 0.5, "*": 1}, nonfinite="skip"),
        gradclip.clip_by_global_norm_(grads, 1.0, ord=2, eps=1e-6, nonfinite="zero", grad_scale=2.0, strict=True),
        gradclip.clip_by_global_norm_(grads, np.float32(1.0)),
        gradclip.clip_by_norm_(grads, np.int64(1)),
        gradclip.clip_by_global_norm_((grad for grad in grads), thresholds.Quantile(0.9)),
        gradclip.clip_by_global_norm_(grads, 1.0, owned={"*": True}, comm=None),
        gradclip.clip_by_norm_(grads, 1.0, groups={"*": "all"}, owned={"*": True}, comm=None),
        gradclip.normalize_(grads, 2.0, eps=0.0, per_leaf=True, ord=float("inf")),
        gradclip.clip_adaptive_(grads, params, 0.01, eps=1e-3, unit_axis=-1, nonfinite="propagate"),
        gradclip.clip_adaptive_(grads, params, {"0": 0.01}, unit_axis=(0, 1)),
        gradclip.clip_adaptive_(grads, params, [0.01, 0.02]),
        gradclip.clip_by_value_(grads, {"0": 0.5}, 1.0),
        gradclip.clip_by_value_(grads, [0.5, 1.0]),
        gradclip.clip_per_sample_(grads[:1], 1.0, strict=True),
        gradclip.sgd_step_(params, grads, 0.1, np.float16(1.0), nonfinite="raise"),
        gradclip.apply_clip_(grads, gradclip.measure(grads), thresholds.Schedule(lambda step: 1.0 / (step + 1))),
    ]
    for report in reports:
        numbers: tuple[float, float, float] = (float(report), report.norm + report.scale, report.max_abs)
        counts: tuple[int, int, int] = (report.nonfinite, report.clipped_count, report.size)
        flags: tuple[bool, bool] = (report.clipped, report.skipped)
        arrays: tuple[NDArray[np.float64], NDArray[np.float64]] = (report.norms, report.scales)
        worst: list[tuple[str, tuple[int, ...], float | None]] = [(r.path, r.shape, r.norm) for r in report.table(top=3)]
        texts: tuple[str, str] = (report.table()[0].dtype, str(report.table()) + worst[0][0])
        assert len(numbers) + len(counts) + len(flags) + len(arrays) + len(texts) == 12
        if report.first_nonfinite is not None:
            path, index = report.first_nonfinite
            print(path.upper(), index + 1)
    assert reports[5].max_norm * 2 == 2.0


def functional(anything: Any) -> None:
    grads = leaves()
    clipped: list[Array] = gradclip.clip_by_value(grads, 1.0)[0]
    clipped, report = gradclip.clip_by_global_norm(grads, np.max(np.arange(3, dtype=np.float32)), strict=True)
    clipped, report = gradclip.clip_by_norm(clipped, np.float32(1.0), axis=(0,))
    clipped, report = gradclip.clip_by_norm(clipped, 1.0, groups={"*": "all"})
    report = gradclip.clip_by_norm_(clipped, {"a": 0.5}, groups=["a"] * len(clipped))
    print(*(report.groups or ()), (report.sensitivity or 0.0) + 1.0)
    clipped, report = gradclip.normalize(clipped)
    clipped, report = gradclip.clip_adaptive(clipped, grads)
    clipped, report = gradclip.apply_clip(clipped, gradclip.measure(clipped), np.float32(1.0))
    samples, report = gradclip.clip_per_sample({"w": grads[0]}, np.float32(1.0))
    sums, report = gradclip.per_sample_clip_sum(samples, 1.0, nonfinite="zero")
    samples, report = gradclip.clip_per_sample(samples, {"w": 1.0}, mask=np.ones(len(samples["w"]), bool))
    sums, report = gradclip.per_sample_clip_sum(samples, 1.0, normalize=True, groups={"w": "all"}, eps=0.01)
    print(report.norm, samples["w"].shape, sums["w"])

    halves = [np.empty(grad.shape, np.float16) for grad in grads]
    cast, report = gradclip.clip_by_global_norm(halves, 1.0, out=halves)
    cast, report = gradclip.clip_by_global_norm([np.ones(a.shape, np.float32) for a in halves], 1.0, out=halves)
    half: NDArray[np.float16] = cast[0]
    row: NDArray[np.float64] = gradclip.clip_by_global_norm(np.array([3.0, 4.0]), 1.0)[0]
    total, report = gradclip.per_sample_clip_sum(np.ones((2, 3)), 1.0, out=np.empty(3))
    print(half.dtype, row.sum(), total.sum())

    unknown, report = gradclip.clip_by_global_norm(anything, 1.0)
    print(unknown, report.clipped)


def measures(parts: Iterable[gradclip.Measure], grads: list[Array]) -> gradclip.Measure:
    parts = list(parts)
    print(gradclip.apply_clip_(grads, sum(parts), 1.0))
    whole = reduce(operator.add, parts)
    whole = sum(parts[1:], parts[0])
    norms: NDArray[np.float64] | None = whole.norms
    print(whole.norm, whole.ord, whole.grad_scale, whole.max_abs, whole.size, whole.nonfinite, norms)
    return whole + whole


def rules() -> None:
    class Half(thresholds.Threshold):
        def next_threshold(self, norm: float) -> float:
            return norm / 2

    rule: thresholds.Threshold
    for rule in (thresholds.Quantile(q=0.5, window=None), thresholds.ZScore(mode="mean"), Half()):
        threshold: float = rule.next_threshold(1.0)
        rule.load_state_dict(json.loads(json.dumps(rule.state_dict())))
        print(threshold, gradclip.clip_by_global_norm(leaves(), rule)[1].max_norm)
    suggested: float = gradclip.suggest_threshold([1.0, 2.0], percentile=50)
    rate: float = gradclip.clip_rate(np.array([1.0, 2.0]), suggested)
    print(rate + thresholds.clip_rate([1.0], np.float32(2.0)))


def watched() -> None:
    watch: monitor.ClipMonitor = gradclip.ClipMonitor(window=10, warn_rate=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gradclip.FrequentClippingWarning)
        warnings.simplefilter("ignore", gradclip.VanishingScaleWarning)
        for _ in range(2):
            watch.record(gradclip.clip_by_global_norm_(leaves(), 1.0))
    percentiles: dict[float, float] = watch.percentiles([50, 90])
    summary: dict[str, float | None] = watch.summary()
    print(watch.steps + 1, watch.clip_rate, percentiles[50], summary["steps"], watch.suggest_threshold(90))
    watch.load_state_dict(watch.state_dict())
    with TemporaryDirectory() as folder:
        watch.to_csv(Path(folder) / "steps.csv")


def rest() -> None:
    norm: float = gradclip.global_norm({"a": leaves()}, ord=1)
    before: int = gradclip.get_num_threads()
    with gradclip.num_threads(1):
        gradclip.set_num_threads(1)
    version: str = gradclip.__version__
    print(norm, before, version, gradclip.show_config().splitlines()[0])
    try:
        gradclip.clip_by_global_norm_([np.array([np.nan])], 1.0)
    except gradclip.NonFiniteGradientError as error:
        path: str = error.path
        where: tuple[int, int] = (error.index, error.count)
        print(path, where, error.value)
    if norm < 0:
        probability: float = gradclip.gaussian_exceedance(1.0, 10, 0.1, log=True)
        watch = gradclip.ClipMonitor()
        watch.plot("steps.png")
        print(probability)


class Pair:
    def __init__(self, first: Array, second: Array | None = None):
        self.first, self.second = first, second


def containers() -> None:
    gradclip.register_container(
        Pair,
        lambda pair: ([pair.first, pair.second], ["first", "second"]),
        lambda pair, children: Pair(*children),
    )
    pair: Pair = gradclip.clip_by_global_norm(Pair(np.array([3.0, 4.0])), 1.0)[0]
    print(pair.first.sum())


def main() -> None:
    containers()
    in_place()
    functional(leaves())
    measures([gradclip.measure(grad, ord=2, grad_scale=1.0) for grad in leaves()], leaves())
    rules()
    watched()
    rest()


if __name__ == "__main__":
    main()
