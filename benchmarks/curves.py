"""Curves of cost and error against wall time, compilation left out, for the benchmarks of the adapted optimiser."""

import time

import jax
import numpy as np
import optax

import fibration as fb

MOST_POINTS = 400


def thinned(*columns):
    """Keep about so many points of a curve, evenly."""
    count = len(columns[0])
    keep = np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).astype(int))
    return [np.asarray(column, float)[keep].tolist() for column in columns]


def timed_minimize(problem, params, error, *, steps, seconds, tolerance=1e-30, **options):
    """Run `fb.optim.minimize`; times of steps are interpolated between the driver's visits, about five a second."""
    call = {"steps": steps, "options": fb.Options(chunk_seconds=0.2), **options}
    began = time.perf_counter()
    # It stops at its start, with everything compiled.
    fb.optim.minimize(problem, params, tolerance=1e30, stop=fb.Stop(wall_seconds=seconds), **call)
    compiled = time.perf_counter() - began
    visits = [(0, 0.0)]
    run = fb.optim.minimize(
        problem,
        params,
        tolerance=tolerance,
        stop=fb.Stop(wall_seconds=seconds),
        progress=lambda p: visits.append((p.steps, p.seconds)),
        **call,
    )
    at = np.interp(run.times, *np.array(visits).T)
    states = [
        jax.tree.unflatten(jax.tree.structure(params), rows) for rows in zip(*jax.tree.leaves(run.params), strict=True)
    ]
    errors = [float(error(state)) for state in states]
    kept = thinned(at, run.costs, errors)
    facts = {"steps": run.stats["steps"], "rejected": run.stats["rejected"], "result": run.result.code}
    return dict(zip(("seconds", "costs", "errors"), kept, strict=True)) | facts | {"compile_seconds": compiled}


def descend_for(optimiser, problem, params, error, seconds, points=60):
    """Run an optax optimiser, or one made for a number of steps, for so many seconds in compiled chunks."""
    scheduled = not isinstance(optimiser, optax.GradientTransformation)

    def chunk_of(made, length):
        def body(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(problem.cost)(params)
            extra = {"value": value, "grad": gradient, "value_fn": problem.cost}
            updates, state = optax.with_extra_args_support(made).update(gradient, state, params, **extra)
            return (optax.apply_updates(params, updates), state), None

        carry = (params, made.init(params))
        began = time.perf_counter()
        chunk = jax.jit(lambda carry: jax.lax.scan(body, carry, None, length)[0]).lower(carry).compile()
        return chunk, carry, time.perf_counter() - began

    def speed(made, length):
        chunk, carry, _ = chunk_of(made, length)
        began = time.perf_counter()
        jax.block_until_ready(chunk(carry))
        return (time.perf_counter() - began) / length

    trial = optimiser(1000) if scheduled else optimiser
    each = speed(trial, 1)
    each = speed(trial, max(1, min(200, int(1 / each))))
    length = max(1, int(seconds / points / each))
    made = optimiser(length * points) if scheduled else optimiser
    chunk, carry, compiled = chunk_of(made, length)
    spent, curve = 0.0, [(0.0, float(problem.cost(params)), float(error(params)))]
    while spent < seconds:
        began = time.perf_counter()
        carry = jax.block_until_ready(chunk(carry))
        spent += time.perf_counter() - began
        curve.append((spent, float(problem.cost(carry[0])), float(error(carry[0]))))
        if not np.isfinite(curve[-1][1]):
            break
    kept = dict(zip(("seconds", "costs", "errors"), np.array(curve).T.tolist(), strict=True))
    return kept | {"steps": length * (len(curve) - 1), "compile_seconds": compiled}
