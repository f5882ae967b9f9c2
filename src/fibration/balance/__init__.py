"""Balance: parameters on a fibre, their moment map and the balanced ones, for linear and for real networks."""

from ._action import AbstractAction, ChainAction
from ._balanced import balanced, factor
from ._chain import act, end_to_end, imbalance, moment_map, partial_products, regularizer
from ._costs import completion, factored, regression, sensing, shrinkage
from ._density_plot import density_plot
from ._dual import dual_multiplier, fibre_velocity
from ._entropy import entropy, free_energy, log_volume_density
from ._fast_slow import fast_slow
from ._fibre import Orbit, distance_bounds, excess, minimum_on_fibre, orbit, rank_pattern
from ._flows import flow
from ._kempf_ness import KempfNess, kempf_ness
from ._langevin import LangevinSample, langevin
from ._layers import (
    PairReport,
    attention,
    gated,
    pair,
    query_key_norm,
    transport_gradients,
    transport_state,
    value_output,
)
from ._learning import LearningFlow, metric, preconditioner
from ._plots import fibre_plot, moment_plot
from ._prior import log_prior
from ._projection import project
from ._rebalance import imbalance_step, rebalance
from ._rescaling import NetworkReport, Rescaling, network, network_plot, rescaling
from ._squared_moment import riccati_path, squared_moment_rates
from ._systems import (
    BalancedRealization,
    LinearSystem,
    Truncation,
    balancing_flow,
    euclidean_realization,
    gramians,
    hankel_singular_values,
    realization,
    truncate,
)
from ._value_plots import fast_slow_plot, singular_value_path, singular_value_plot

__all__ = [
    "AbstractAction",
    "BalancedRealization",
    "ChainAction",
    "KempfNess",
    "LangevinSample",
    "LearningFlow",
    "LinearSystem",
    "NetworkReport",
    "Orbit",
    "PairReport",
    "Rescaling",
    "Truncation",
    "act",
    "attention",
    "balanced",
    "balancing_flow",
    "completion",
    "density_plot",
    "distance_bounds",
    "dual_multiplier",
    "end_to_end",
    "entropy",
    "euclidean_realization",
    "excess",
    "factor",
    "factored",
    "fast_slow",
    "fast_slow_plot",
    "fibre_plot",
    "fibre_velocity",
    "flow",
    "free_energy",
    "gated",
    "gramians",
    "hankel_singular_values",
    "imbalance",
    "imbalance_step",
    "kempf_ness",
    "langevin",
    "log_prior",
    "log_volume_density",
    "metric",
    "minimum_on_fibre",
    "moment_map",
    "moment_plot",
    "network",
    "network_plot",
    "orbit",
    "pair",
    "partial_products",
    "preconditioner",
    "project",
    "query_key_norm",
    "rank_pattern",
    "realization",
    "rebalance",
    "regression",
    "regularizer",
    "rescaling",
    "riccati_path",
    "sensing",
    "shrinkage",
    "singular_value_path",
    "singular_value_plot",
    "squared_moment_rates",
    "transport_gradients",
    "transport_state",
    "truncate",
    "value_output",
]
