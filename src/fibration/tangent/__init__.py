"""The differential of the map from parameters to outputs: products, Jacobian, Gram matrix, minimum-norm solves."""

from ._diagnosis import Diagnosis
from ._differential import jacobian, operator
from ._explain import RankReport, explain_rank
from ._gram import gram
from ._minimum_norm import minimum_norm
from ._rank import rank

__all__ = ["Diagnosis", "RankReport", "explain_rank", "gram", "jacobian", "minimum_norm", "operator", "rank"]
