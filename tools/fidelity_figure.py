"""Draw the figure of docs/fidelity.md: four step sizes on a tanh network, about a minute on two cores."""

import pathlib

import jax

jax.config.update("jax_enable_x64", True)

import fibration as fb  # noqa: E402

apply, params = fb.networks.mlp((2, 8, 1), "tanh", key=jax.random.key(0))
inputs = jax.random.normal(jax.random.key(1), (30, 2))
problem = fb.Problem(apply, inputs, jax.numpy.sin(inputs[:, :1] - inputs[:, 1:]))
comparison = fb.fidelity.compare(problem, params, [0.1, 0.05, 0.02, 0.005], t1=20.0, checks=101, n_times=100)
print(comparison.table().to_string())
path = pathlib.Path(__file__).parents[1] / "docs" / "images" / "fidelity.png"
path.parent.mkdir(exist_ok=True)
comparison.figure().savefig(path, dpi=110, metadata={"Software": None})
