"""What can be known before a run: precision, kinks, missing minimisers, missing rank."""

import warnings

import jax.numpy as jnp

from ..errors import NoMinimizerWarning, NonsmoothModelWarning, PrecisionWarning, RankDeficientWarning
from ..losses import CrossEntropy, SquaredError
from ..problem import AbstractProblem
from ..tangent._diagnosis import Diagnosis
from ..tangent._differential import blocks_of
from ..tangent._explain import explain_rank
from ..tangent._minimum_norm import fits
from ..tangent._rank import rank as tangent_rank
from ..trees import PyTree
from ._lifted import AbstractLiftedFlow
from ._metrics import Euclidean, Whitened, class_weights
from ._smoothness import kinks

STACK = 6  # from `warn` to the caller of `integrate`, with one frame of equinox between


def warn(flow: AbstractLiftedFlow, problem: AbstractProblem, params: PyTree, found: Diagnosis) -> None:
    """Warn of everything that is known at the start of a run."""
    edges = kinks(problem, params)
    if edges:
        warnings.warn(
            f"the network has kinks ({', '.join(edges)}): the flow can slide along them, and its decay law then fails. "
            "Take a smooth activation, or follow the path of the outputs with `fb.follow`",
            NonsmoothModelWarning,
            stacklevel=STACK,
        )
    _warn_of_labels(flow, problem)
    _warn_of_precision(found)
    _warn_of_rank(flow, problem, params, found)


def _warn_of_labels(flow: AbstractLiftedFlow, problem: AbstractProblem) -> None:
    if not isinstance(getattr(flow, "metric", None), Euclidean):
        return
    for block in blocks_of(problem):
        if isinstance(block.loss, CrossEntropy) and bool(jnp.any(class_weights(block, jnp.zeros(()).dtype) == 0)):
            n, q = block.n_samples, block.n_outputs
            warnings.warn(
                "cross-entropy with labels that give a class no weight has no minimiser: outputs diverge, and the cost "
                f"falls as (Q−1)N/(Qt) = {(q - 1) * n / q:.3g}/t only. Smooth the labels, or take "
                "`AdaptedFlow(metric=fb.flows.SoftmaxFisher())`, whose probabilities decay as e^(−t/N)",
                NoMinimizerWarning,
                stacklevel=STACK + 1,
            )


def _warn_of_precision(found: Diagnosis) -> None:
    condition, eps = float(found.condition), float(jnp.finfo(jnp.asarray(found.sigma_max).dtype).eps)
    if condition * eps > 1e-2:
        warnings.warn(
            f"the differential's condition is {condition:.1e} at the start, and the machine epsilon {eps:.1e}: expect "
            f"residuals to be off by {condition * eps:.0e} of themselves. Enable float64, "
            '`jax.config.update("jax_enable_x64", True)`, before making arrays, or add damping',
            PrecisionWarning,
            stacklevel=STACK + 1,
        )


def _warn_of_rank(flow: AbstractLiftedFlow, problem: AbstractProblem, params: PyTree, found: Diagnosis) -> None:
    n_outputs = problem.n_residuals
    rank, miss = int(found.rank), float(found.residual)
    if rank >= n_outputs or not miss > 100 * float(jnp.finfo(jnp.asarray(found.sigma_max).dtype).eps) ** 0.5:
        return
    blocks = blocks_of(problem)
    squares = len(blocks) == 1 and isinstance(blocks[0].loss, SquaredError) and blocks[0].weights is None
    floor = ""
    if isinstance(getattr(flow, "metric", None), Euclidean | Whitened) and squares:
        cost = float(problem.cost(params))
        floor = f" The cost, {cost:.3g} now, falls to {miss**2 * cost:.3g} at best if that range stays."
    differential = flow.differential(problem, params)
    known = f"the differential has less than full rank, {n_outputs}."
    if fits(differential, n_outputs**2):
        known = explain_rank(problem, params, tangent_rank(problem, params))
    warnings.warn(
        f"the outputs cannot move as they should, by {miss:.1e} of their velocity: {known}{floor}",
        RankDeficientWarning,
        stacklevel=STACK + 1,
    )
