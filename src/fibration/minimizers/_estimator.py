"""The constructor as a scikit-learn classifier."""

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ._construct import construct
from ._minimizer import Minimizer, nearest

FLOATS = (np.float64, np.float32)


class TruncationClassifier(ClassifierMixin, BaseEstimator):
    """A ReLU network written down without training, as a scikit-learn classifier.

    It names the class whose target, a unit vector, is nearest to the network's output; ties go to the class that comes
    first. The network fits separable classes at zero cost, which says nothing of new samples; it knows no
    probabilities, and takes no `sample_weight`.

    **Arguments:** `depth`, `method`, `weights`, `shift`, `opening`: as those of `construct`, checked by `fit`.

    After `fit`: `minimizer_`, the `Minimizer`; `cost_` and `certified_`, its own; `classes_` (Q,), sorted;
    `n_features_in_`; `feature_names_in_`, where `X` has names for its columns.

    **Source:** Chen and Muñoz Ewald, arXiv 2309.10639 and 2405.07098; see `construct`.

    ```python
    >>> import fibration as fb
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> inputs, labels = fb.datasets.gaussian_clusters(3, 20, 4, spread=0.03)
    >>> classifier = make_pipeline(StandardScaler(), fb.minimizers.TruncationClassifier())
    >>> classifier.fit(inputs, labels).score(inputs, labels), classifier[-1].certified_
    (1.0, True)

    ```
    """

    # Without types: scikit-learn asks that any value be taken here, and refused by `fit`.
    def __init__(
        self,
        depth: Any = None,
        method: Any = "auto",
        weights: Any = "class",
        shift: Any = "auto",
        opening: Any = "auto",
    ) -> None:
        self.depth = depth
        self.method = method
        self.weights = weights
        self.shift = shift
        self.opening = opening

    def fit(self, X: Any, y: Any) -> "TruncationClassifier":
        """Construct the network.

        **Arguments:** `X` (N, M): an array, list or data frame; `y` (N,): numbers or strings.

        **Returns:** the classifier itself.

        **Raises:** those of `construct`, all of them `ValueError`, and scikit-learn's own for malformed data. Warns
        with `ConditioningWarning`.
        """
        inputs, labels = validate_data(self, X, y, dtype=FLOATS)
        check_classification_targets(labels)
        self.minimizer_: Minimizer = construct(
            inputs,
            labels,
            depth=self.depth,
            weights=self.weights,
            method=self.method,
            shift=self.shift,
            opening=self.opening,
        )
        self.classes_ = self.minimizer_.classes
        self.cost_, self.certified_ = self.minimizer_.cost, self.minimizer_.certified
        return self

    def decision_function(self, X: Any) -> Float[np.ndarray, " N"] | Float[np.ndarray, "N Q"]:
        """Score the classes: s_k = ⟨f(x), y_k⟩ − ½|y_k|², largest where |f(x) − y_k| = (|f(x)|² − 2s_k)^½ is least.

        With targets that are unit vectors, s_k = f_k(x) − ½.

        **Returns:** (N, Q), whose first largest entry is the class that `predict` names, in ties too; with two classes
        s_2 − s_1 (N,), positive for the second of them.
        """
        scores, _ = self._scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict(self, X: Any) -> Shaped[np.ndarray, " N"]:
        """Name the class of each row of X (N, M)."""
        _, chosen = self._scores(X)
        return self.classes_[chosen]

    def _scores(self, X: Any) -> tuple[Float[np.ndarray, "N Q"], Shaped[np.ndarray, " N"]]:
        check_is_fitted(self)
        inputs = validate_data(self, X, dtype=FLOATS, reset=False)
        outputs, targets = self.minimizer_.outputs(inputs), self.minimizer_.targets
        chosen = nearest(outputs, targets)
        scores = outputs @ targets.T - np.sum(targets**2, axis=1) / 2
        # In a tie the class chosen may be below the largest by rounding.
        scores[np.arange(len(scores)), chosen] = scores.max(axis=1)
        return scores, chosen
