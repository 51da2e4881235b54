"""What a user may get wrong. Type checkers find an error in each line that says so, and in no other."""

import numpy as np

import gradclip
from gradclip import thresholds

grads = [np.array([3.0, 4.0])]
found = gradclip.measure(grads)


def never_called() -> None:
    gradclip.clip_by_global_norm_(grads, "x")  # error
    gradclip.clip_by_global_norm_(grads, 1.0, nope=3)  # error
    gradclip.clip_by_global_norm_(grads, 1.0, nonfinite="ignore")  # error
    gradclip.clip_by_global_norm_(grads)  # error
    gradclip.clip_by_global_norm(grads, 1.0, nope=3)  # error
    print(gradclip.clip_by_global_norm(grads, 1.0)[0].norm)  # error
    print(gradclip.clip_by_global_norm(grads, 1.0, out=grads)[0].norm)  # error
    gradclip.clip_by_value_(grads, 1.0, ord=2)  # error
    gradclip.clip_by_value(grads, "x")  # error
    print(gradclip.clip_by_value(grads, 1.0)[0].norm)  # error
    gradclip.clip_by_norm_(grads, "x")  # error
    gradclip.clip_by_norm_(grads, 1.0, axis="rows")  # error
    gradclip.clip_by_norm(grads, 1.0, strict="yes")  # error
    print(gradclip.clip_by_norm(grads, 1.0)[0].norm)  # error
    gradclip.clip_by_norm_(grads, {"*": 1.0})
    gradclip.normalize_(grads, eps="small")  # error
    gradclip.normalize_(grads, nope=3)  # error
    gradclip.normalize(grads, per_leaf=3.5)  # error
    print(gradclip.normalize(grads)[0].norm)  # error
    gradclip.clip_adaptive_(grads)  # error
    gradclip.clip_adaptive_(grads, grads, nope=3)  # error
    gradclip.clip_adaptive(grads, grads, unit_axis="first")  # error
    print(gradclip.clip_adaptive(grads, grads)[0].norm)  # error
    gradclip.clip_per_sample_(grads, thresholds.Quantile())  # error
    gradclip.clip_per_sample(grads, 1.0, nope=3)  # error
    print(gradclip.clip_per_sample(grads, 1.0)[0].norm)  # error
    gradclip.per_sample_clip_sum(grads, 1.0, nope=3)  # error
    print(gradclip.per_sample_clip_sum(grads, 1.0)[1].nope)  # error
    gradclip.sgd_step_(grads, grads)  # error
    gradclip.sgd_step_(grads, grads, 0.1, momentum=0.9)  # error
    gradclip.apply_clip_(grads, 5.0, 1.0)  # error
    gradclip.apply_clip_(grads, found, 1.0, nope=3)  # error
    gradclip.apply_clip(grads, found, "x")  # error
    print(gradclip.apply_clip(grads, found, 1.0)[0].norm)  # error
    gradclip.measure(grads, strict=True)  # error
    print(found + 1)  # error
    print(found.nope)  # error
    print(gradclip.clip_by_global_norm_(grads, 1.0).nope)  # error
    gradclip.clip_by_global_norm_(grads, 1.0).norm.upper()  # error
    gradclip.global_norm(grads, nope=2)  # error
    thresholds.Quantile("x")  # error
    thresholds.ZScore(mode="median")  # error
    thresholds.Schedule(lambda: 1.0)  # error
    gradclip.ClipMonitor().record(5.0)  # error
    gradclip.NonFiniteGradientError("w", 0, 1).index.upper()  # error
    gradclip.set_num_threads("2")  # error
    gradclip.register_container(list, len, lambda items, children: items)  # error
    print(gradclip.nope)  # error
