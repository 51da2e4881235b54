"""What surrounds a clip: threshold rules, monitoring, and measures that are merged. Each 1000 times over."""

from collections import deque

import numpy as np

import gradclip
from gradclip import thresholds

from .common import MODELS, SEED, gradients

RULES = {
    "Quantile": thresholds.Quantile,
    "Quantile, all norms": lambda: thresholds.Quantile(window=None),
    "ZScore": thresholds.ZScore,
}


def drain(calls):
    """Make them all, and keep nothing."""
    deque(calls, maxlen=0)


class Rules:
    """1000 steps of a rule that has seen 10,000."""

    params = tuple(RULES)
    param_names = ("rule",)

    def setup(self, rule):
        self.norms = np.random.default_rng(SEED).lognormal(size=11_000).tolist()
        self.rule = RULES[rule]()
        drain(map(self.rule.next_threshold, self.norms[1000:]))

    def time_next_threshold(self, rule):
        drain(map(self.rule.next_threshold, self.norms[:1000]))


class Monitor:
    """1000 records with a full window."""

    def setup(self):
        self.monitor = gradclip.ClipMonitor(warn_rate=1.0)
        self.report = gradclip.clip_by_global_norm_(np.ones(4), 1.0)
        drain(map(self.monitor.record, [self.report] * 2000))

    def time_record(self):
        drain(map(self.monitor.record, [self.report] * 1000))

    def time_summary(self):
        self.monitor.summary()


class Measures:
    """One measure of a model, and 1000 of one leaf merged, as ranks or shards would."""

    def setup(self):
        self.model = gradients(MODELS["ResNet-50"]())
        self.parts = [gradclip.measure(leaf) for leaf in np.random.default_rng(SEED).standard_normal((1000, 100))]

    def time_measure(self):
        gradclip.measure(self.model)

    def time_sum(self):
        sum(self.parts)
