"""`PerLeaf`: a rule for each leaf."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from .._core.arguments import number
from .base import Threshold, check_state


class PerLeaf:
    """A copy of a rule for each leaf: every leaf gets a threshold from the norms of its own past.

    It is passed as `max_norm` to `clip_by_norm_` or `clip_by_norm`. A leaf is known by its path, so the order of leaves may
    change. A path that was not seen before starts with a new copy of the rule.

    Parameters
    ----------
    rule : Threshold
        What is copied, as it is now: a rule that has a history gives it to each copy.

    Attributes
    ----------
    rule : Threshold
        What new paths start with.
    rules : dict of str to Threshold
        The copy of each path that has been seen.

    Raises
    ------
    TypeError
        `rule` is no rule.

    See Also
    --------
    EMA : The rule of AdaGC, which gives each tensor one.

    Notes
    -----
    A leaf whose norm is NaN or infinite is not remembered. A step that ``nonfinite="raise"`` or ``"skip"`` leaves out is
    remembered for no leaf.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> from gradclip.thresholds import EMA, PerLeaf
    >>> rule = PerLeaf(EMA(factor=2.0, beta=0.5, warmup=1))
    >>> for size in (1.0, 2.0, 9.0):
    ...     grads = {"embed": np.full(4, size), "head": np.full(4, size / 10)}
    ...     report = gradclip.clip_by_norm_(grads, rule)
    >>> report.norms, report.scales
    (array([18. ,  1.8]), array([0.33333333, 0.33333333]))
    """

    def __init__(self, rule: Threshold):
        if not isinstance(rule, Threshold):
            raise TypeError(f"rule must be a rule of gradclip.thresholds or a Threshold of your own, not {type(rule).__name__}")
        self.rule = copy.deepcopy(rule)
        self.rules: dict[str, Threshold] = {}

    def next_threshold(self, path: str, norm: float) -> float:
        """Return the threshold of a leaf for this step, and remember its norm for the steps to come.

        Parameters
        ----------
        path : str
            Where the leaf stands.
        norm : float
            Its norm before clipping, >= 0.

        Returns
        -------
        float
            The threshold, >= 0; ``inf`` if the leaf is not to be clipped.

        Raises
        ------
        TypeError, ValueError
            `norm` is not a number, or is negative; or the rule gave no threshold. The message names the path.
        """
        rule = self.rules.get(path)
        if rule is None:
            rule = copy.deepcopy(self.rule)
        threshold = number(f"max_norm of {path}: {type(rule).__name__}.next_threshold", rule.next_threshold(norm), 0.0)
        self.rules[path] = rule
        return threshold

    def state_dict(self) -> dict[str, Any]:
        """Return the parameters and the history of the rules of all paths, for a checkpoint.

        Returns
        -------
        dict
            Only what JSON can hold: no NaN and no Inf.
        """
        rules = {path: rule.state_dict() for path, rule in self.rules.items()}
        return {"rule": type(self).__name__, "of": self.rule.state_dict(), "paths": rules}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the rules of all paths to those of a `state_dict`; paths that it lacks are forgotten.

        Parameters
        ----------
        state : dict
            What `state_dict` of a `PerLeaf` with a rule of the same class returned.

        Raises
        ------
        TypeError, ValueError
            `state` is not a dict, belongs to another rule, or is damaged; the message names path and key. Nothing was changed.
        """
        check_state(state, type(self).__name__, ("rule", "of", "paths"))
        for key in ("of", "paths"):
            if not isinstance(state[key], Mapping):
                raise ValueError(f"state: {key} must be a dict, not {type(state[key]).__name__}")
        rule = self._loaded(state["of"], "of")
        rules = {path: self._loaded(own, f"paths: {path}") for path, own in state["paths"].items()}
        self.rule, self.rules = rule, rules

    def _loaded(self, state: Any, name: str) -> Threshold:
        """Return a copy of the rule that has a state; an error about this says where it stands."""
        rule = copy.deepcopy(self.rule)
        try:
            rule.load_state_dict(state)
        except (TypeError, ValueError) as error:
            raise ValueError(f"state: {name}: {error}") from None
        return rule

    def __repr__(self) -> str:
        """Return the call that makes such a rule."""
        return f"PerLeaf({self.rule!r})"
