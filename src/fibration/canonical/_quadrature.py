"""Quadrature rules on the unit cube, and the transform from values at their nodes to coefficients."""

import functools
import math
from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _validation
from ..errors import MemoryBudgetError, ParameterError
from ..trees import is_traced
from ._arguments import as_count
from ._basis import Basis, check_basis, modes
from ._lattice import coincident_modes, generator, mirrored, powers

METHODS = ("auto", "gauss", "midpoint", "uniform", "lattice", "pieces")
# Beyond three dimensions products of rules have too many nodes.
_PRODUCTS = 3
_MOST_NODES = 2**26
# Of lattices, whose generators are searched for; and up to how many nodes a default one grows to tell modes apart.
_MOST_LATTICE, _LARGEST_DEFAULT = 2**24, 2**20
# Gauss nodes of one axis are eigenvalues of a matrix of their number: more of them take minutes.
_MOST_GAUSS = 2048
# Pieces that need more nodes than this are divided.
_PIECE = 256
# Entries of a table of modes that is held at once.
_TABLE = 2**24
# A Gram matrix of the modes that is off by more than this is said to be.
_OFF = 1e-8


class AbstractRule(eqx.Module):
    """Nodes u_g and weights w_g, Σ w_g f(u_g) ≈ ∫ f du, for one basis.

    `nodes` (G, d), in the unit cube; `weights` (G,), which add up to 1; `samples` (G, …): the nodes in the box.
    """

    basis: Basis

    @property
    @abstractmethod
    def nodes(self) -> Any:
        """The nodes in the unit cube."""

    @property
    @abstractmethod
    def weights(self) -> Any:
        """The weights, which add up to 1."""

    @abstractmethod
    def analyse(self, values: Float[Array, "G Q"]) -> Float[Array, "K Q"]:
        """Compute θ_k = Σ_g w_g e_k(u_g) values_g."""

    @abstractmethod
    def refined(self) -> "AbstractRule | None":
        """Make the rule with twice as many nodes on each axis, or altogether; `None` where that is out of reach."""

    @property
    def size(self) -> int:
        """The number G of nodes."""
        return len(self.weights)

    @property
    def samples(self) -> Float[Array, "G ..."]:
        """The nodes as samples of the box."""
        return self.basis.from_unit(jnp.asarray(self.nodes))

    def spread(self, theta: Float[Array, "K Q"]) -> Float[Array, "G Q"]:
        """Compute w_g Σ_k e_k(u_g) θ_k, the transpose of `analyse`."""
        shape = jax.ShapeDtypeStruct((self.size, theta.shape[1]), theta.dtype)
        return jax.linear_transpose(self.analyse, shape)(theta)[0]


class ProductRule(AbstractRule):
    """A rule on each axis, all of n nodes: "gauss" (Legendre), "midpoint", or "uniform", j/n for periodic functions.

    `analyse` goes axis by axis: matrix products for Gauss, fast cosine and Fourier transforms else; it holds G·Q
    numbers a few times.
    """

    name: str = eqx.field(static=True)
    n: int = eqx.field(static=True)

    @property
    def axis(self) -> tuple[np.ndarray, np.ndarray]:
        """The nodes and weights of one axis."""
        if self.name == "gauss":
            return gauss_legendre(self.n)
        offset = 0.5 if self.name == "midpoint" else 0.0
        return (np.arange(self.n) + offset) / self.n, np.full(self.n, 1 / self.n)

    @property
    def nodes(self) -> Any:
        """The product of the axes' nodes, the last axis running fastest."""
        grids = np.meshgrid(*[self.axis[0]] * self.basis.dimension, indexing="ij")
        return np.stack(grids, axis=-1).reshape(-1, self.basis.dimension)

    @property
    def weights(self) -> Any:
        """The products of the axes' weights."""
        grids = np.meshgrid(*[self.axis[1]] * self.basis.dimension, indexing="ij")
        return functools.reduce(np.multiply, grids).reshape(-1)

    def analyse(self, values: Float[Array, "G Q"]) -> Float[Array, "K Q"]:
        """Transform axis by axis, and pick the basis's modes."""
        d, degree = self.basis.dimension, self.basis.degree
        whole = values.reshape(*[self.n] * d, values.shape[1])
        for axis in range(d):
            whole = jnp.moveaxis(self._along_first(jnp.moveaxis(whole, axis, 0)), 0, axis)
        offset = 0 if self.basis.kind == "cosine" else degree
        return whole[tuple(self.basis.indices[:, axis] + offset for axis in range(d))]

    def _along_first(self, values: Float[Array, "n ..."]) -> Float[Array, "m ..."]:
        cosine, degree = self.basis.kind == "cosine", self.basis.degree
        frequencies = np.arange(0 if cosine else -degree, degree + 1)
        fast = {"midpoint": cosine, "uniform": not cosine}.get(self.name, False) and self.n > 2 * degree
        if not fast:
            nodes, weights = self.axis
            table = modes(frequencies, self.basis.kind, jnp.asarray(nodes)) * weights[:, None]
            return jnp.tensordot(table.astype(values.dtype), values, axes=(0, 0))
        root = math.sqrt(2)
        if cosine:
            scale = np.where(frequencies == 0, 1.0, root) / (2 * self.n)
            found = jax.scipy.fft.dct(values, type=2, axis=0)[: degree + 1]
            return _rows(scale, values) * found
        found = jnp.fft.rfft(values, axis=0)[: degree + 1] / self.n
        scale = np.where(np.arange(degree + 1) == 0, 1.0, root)
        found = _rows(scale, values) * found
        return jnp.concatenate([-found.imag[:0:-1], found.real])

    def refined(self) -> "ProductRule | None":
        """Double the number of nodes on each axis."""
        if self.name == "gauss" and 2 * self.n > _MOST_GAUSS:
            return None
        return ProductRule(self.basis, self.name, 2 * self.n)


class PiecewiseRule(AbstractRule):
    """Gauss-Legendre between the breakpoints of a function of one input: exact to rounding for piecewise polynomials.

    `cuts`: 0, the breakpoints in the unit interval, ascending, 1; `n` nodes on each piece.
    """

    cuts: Float[Array, " P"]
    n: int = eqx.field(static=True)

    @property
    def nodes(self) -> Any:
        """The pieces' nodes, one piece after the other."""
        return (self.cuts[:-1, None] + jnp.diff(self.cuts)[:, None] * gauss_legendre(self.n)[0]).reshape(-1, 1)

    @property
    def weights(self) -> Any:
        """The pieces' weights."""
        return (jnp.diff(self.cuts)[:, None] * gauss_legendre(self.n)[1]).reshape(-1)

    def analyse(self, values: Float[Array, "G Q"]) -> Float[Array, "K Q"]:
        """Multiply with the table of modes, of some pieces at a time."""
        pieces = len(self.cuts) - 1
        size = max(1, min(pieces, _TABLE // (self.n * self.basis.size)))
        count = math.ceil(pieces / size)
        # Pieces that are added to make it even have no length, so that their nodes have no weight.
        added = count * size - pieces
        cuts = jnp.concatenate([self.cuts, jnp.broadcast_to(self.cuts[-1], (added,))])
        values = jnp.concatenate([values, jnp.zeros((added * self.n, *values.shape[1:]), values.dtype)])

        def part(start: Array, of_part: Float[Array, "c Q"]) -> Float[Array, "K Q"]:
            rule = PiecewiseRule(self.basis, jax.lax.dynamic_slice_in_dim(cuts, start, size + 1), self.n)
            table = self.basis.evaluate_unit(rule.nodes) * rule.weights[:, None]
            return table.T.astype(values.dtype) @ of_part

        chunks = values.reshape(count, size * self.n, values.shape[1])
        if count == 1:
            return part(jnp.zeros((), int), chunks[0])
        zero = jnp.zeros((self.basis.size, values.shape[1]), values.dtype)
        step = lambda total, chunk: (total + part(*chunk), None)  # noqa: E731
        return jax.lax.scan(step, zero, (jnp.arange(count) * size, chunks))[0]

    def refined(self) -> "PiecewiseRule":
        """Double the number of nodes on each piece, or halve the pieces where there are many already."""
        if self.n <= _PIECE:
            return PiecewiseRule(self.basis, self.cuts, 2 * self.n)
        middles = (self.cuts[:-1] + self.cuts[1:]) / 2
        return PiecewiseRule(self.basis, jnp.sort(jnp.concatenate([self.cuts, middles])), self.n)


class LatticeRule(AbstractRule):
    """The rank-1 lattice {j z / n} folded by the tent u ↦ 1 − |2u − 1|, for cosine bases in many dimensions.

    All coefficients come out of one Fourier transform of length n: the tent makes cos πku of cos 2πku, so that θ_k is
    √2^(number of k's non-zero entries) times the mean of F̂[(s∘k)·z mod n] over the signs s. z = (1, a, a², …) mod n is
    Korobov's, a the best by the figure of merit P₂ of a search among those for which all these frequencies are distinct
    up to sign, so that the modes are orthonormal on the lattice.

    **Source:** Cools, Kuo, Nuyens and Suryanarayana, *Tent-transformed lattice rules for integration and
    approximation of multivariate non-periodic functions*, J. Complexity 36 (2016).
    """

    n: int = eqx.field(static=True)
    z: tuple[int, ...] = eqx.field(static=True)

    @property
    def nodes(self) -> Any:
        """The folded lattice."""
        # In integers: j·z overflows nothing, and rounding enters once.
        steps = np.arange(self.n, dtype=np.int64)[:, None] * np.asarray(self.z, dtype=np.int64) % self.n
        return 1 - np.abs(2 * (steps / self.n) - 1)

    @property
    def weights(self) -> Any:
        """All alike."""
        return np.full(self.n, 1 / self.n)

    def analyse(self, values: Float[Array, "G Q"]) -> Float[Array, "K Q"]:
        """Transform once, and gather the mirrored frequencies of each mode."""
        spectrum = jnp.fft.rfft(values, axis=0).real / self.n
        owners, residues, scales = mirrored(self.basis.indices, self.z, self.n)
        parts = spectrum[residues] * _rows(scales, values)
        return jax.ops.segment_sum(parts, jnp.asarray(owners), num_segments=self.basis.size, indices_are_sorted=True)

    def refined(self) -> "LatticeRule":
        """Make a lattice of about twice as many nodes."""
        return lattice_rule(self.basis, 2 * self.n)


def _rows(scale: np.ndarray, values: Array) -> Array:
    return jnp.asarray(scale, values.real.dtype).reshape(-1, *[1] * (values.ndim - 1))


@functools.lru_cache(maxsize=64)
def gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute nodes and weights on [0, 1] (NumPy's, by the companion matrix and Newton's method)."""
    x, w = np.polynomial.legendre.leggauss(n)
    return (x + 1) / 2, w / 2


def lattice_rule(basis: Basis, at_least: int, most: int | None = None) -> LatticeRule:
    """Make a lattice of at least so many nodes, a prime number of them, and up to `most` if modes coincide on it."""
    d = basis.dimension
    n, a = generator(basis.index_set, d, basis.degree, at_least, at_least if most is None else most)
    return LatticeRule(basis, n, tuple(powers(a, d, n)))


def least_nodes(degree: int, kind: str) -> int:
    """Tell how many Gauss nodes integrate the products of two modes to rounding (spec: n ≥ ω/2 + 6ω^{1/3} + 6)."""
    omega = math.pi * degree * (1 if kind == "cosine" else 2)
    return math.ceil(omega / 2 + 6 * omega ** (1 / 3) + 6)


def quadrature(basis: Any, method: Any = "auto", *, nodes: Any = None, breakpoints: Any = None) -> AbstractRule:
    """Make a quadrature rule for the coefficients of a basis.

    **Arguments:**

    - `method`: "gauss", Gauss–Legendre on each axis: spectral for smooth functions, up to 3 dimensions; "midpoint", a
      grid with a fast cosine transform: O(n⁻²), for many modes; "uniform", a grid with a fast Fourier transform:
      spectral for periodic functions; "lattice", for the cosine basis in 4 dimensions or more; "pieces", Gauss–Legendre
      between the `breakpoints` of a function of one input. "auto": "pieces" if there are breakpoints, "lattice" in
      more than 3 dimensions, "uniform" for a Fourier basis, "midpoint" from degree 601 on, else "gauss".
    - `nodes`: on each axis, on each piece, or of the lattice. By default as many as integrate products of two modes
      exactly; for a lattice 2¹⁶, or as many more, up to 2²⁰, as it takes to tell all modes apart.
    - `breakpoints`: in the units of the inputs; see `fb.canonical.breakpoints`.

    **Raises:** `UnknownNameError`, `ParameterError`; `MemoryBudgetError` beyond 2²⁶ nodes, 2²⁴ of a lattice, or 2048
    Gauss nodes on an axis.

    ```python
    >>> import fibration as fb
    >>> rule = fb.canonical.quadrature(fb.canonical.Basis([(0, 1), (0, 1)], degree=3), nodes=8)
    >>> rule.size, round(float(rule.weights.sum()), 12)
    (64, 1.0)

    ```
    """
    d = check_basis(basis).dimension
    _validation.check_name("method", method, METHODS)
    nodes = None if nodes is None else as_count("nodes", nodes)
    if method == "auto":
        many = 2 * least_nodes(basis.degree, basis.kind) > _MOST_GAUSS
        product = "uniform" if basis.kind == "fourier" else "midpoint" if many else "gauss"
        smooth = "lattice" if d > _PRODUCTS else product
        method = smooth if breakpoints is None else "pieces"
    if method == "lattice":
        if basis.kind != "cosine":
            raise ParameterError(
                "a lattice for a Fourier basis", "a cosine basis", 'pass kind="cosine", or at most 3 inputs'
            )
        if nodes is not None and nodes > _MOST_LATTICE:
            raise MemoryBudgetError(f"a lattice of {nodes} nodes", f"at most {_MOST_LATTICE}", "pass fewer `nodes`")
        return lattice_rule(basis, 2**16, _LARGEST_DEFAULT) if nodes is None else lattice_rule(basis, nodes)
    if method == "pieces":
        return _pieces(basis, breakpoints, nodes)
    n = nodes or (
        least_nodes(basis.degree, basis.kind) if method == "gauss" else 2 ** math.ceil(math.log2(4 * basis.degree + 8))
    )
    _check_nodes(n if method == "gauss" else 1, n**d, f"{n} nodes on each of {d} axes")
    return ProductRule(basis, method, n)


def _check_nodes(gauss: int, count: int, given: str) -> None:
    """Raise `MemoryBudgetError` for too many Gauss nodes on an axis or a piece, or too many altogether."""
    if count > _MOST_NODES:
        raise MemoryBudgetError(
            given, f"at most {_MOST_NODES} nodes", 'lower the degree, or pass method="lattice" for several inputs'
        )
    if gauss > _MOST_GAUSS:
        raise MemoryBudgetError(given, f"at most {_MOST_GAUSS} Gauss nodes on an axis", 'pass method="midpoint"')


def _pieces(basis: Basis, breakpoints: Any, nodes: int | None) -> PiecewiseRule:
    if basis.dimension != 1:
        raise ParameterError(
            f"breakpoints for {basis.dimension} inputs", "a function of one input", "leave `breakpoints` out"
        )
    low, high = basis.low[0], basis.high[0]
    try:
        places = np.asarray([] if breakpoints is None else breakpoints, dtype=float).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ParameterError(
            f"breakpoints are {breakpoints!r}", "numbers in the units of the input", "see `fb.canonical.breakpoints`"
        ) from error
    _validation.check_finite(places, "breakpoints")
    cuts = (places - low) / (high - low)
    parts = 1 if nodes else math.ceil(least_nodes(basis.degree, basis.kind) / _PIECE)
    inside = np.unique(np.concatenate([cuts[(cuts > 0) & (cuts < 1)], np.arange(1, parts) / parts]))
    n = nodes or least_nodes(math.ceil(basis.degree / parts), basis.kind)
    _check_nodes(n, n * (len(inside) + 1), f"{n} nodes on each of {len(inside) + 1} pieces")
    return PiecewiseRule(basis, jnp.asarray([0.0, *inside.tolist(), 1.0]), n)


def aliasing(rule: AbstractRule) -> str | None:
    """Say why the modes are not orthonormal under a rule, to 1e-8, or `None` if they are or nobody can tell."""
    basis = rule.basis
    if isinstance(rule, LatticeRule):
        count = coincident_modes(basis.indices, rule.z, rule.n)
        return f"{count} of the {basis.size} modes coincide with others on its {rule.n} nodes" if count else None
    # Products of two modes are waves of up to twice the highest frequency, in units of π.
    top = 2 * basis.degree * (1 if basis.kind == "cosine" else 2)
    if isinstance(rule, PiecewiseRule):
        off = None if is_traced(rule.cuts) else _gauss_error(rule.n, float(np.diff(np.asarray(rule.cuts)).max()), top)
    elif isinstance(rule, ProductRule) and rule.name == "gauss":
        off = _gauss_error(rule.n, 1.0, top)
    elif isinstance(rule, ProductRule):
        exact = rule.name == "midpoint" or basis.kind == "fourier" or top == 0
        off = 1.0 if 2 * rule.n <= top else 0.0 if exact else 1 / rule.n
    else:
        return None
    if off is None or off <= _OFF:
        return None
    return f"its {rule.n} nodes an axis or a piece integrate products of modes up to an error of {off:.0e}"


@functools.lru_cache(maxsize=64)
def _gauss_error(n: int, length: float, top: int) -> float:
    """Compute the largest error of n Gauss nodes on an interval for e^{iπmu}, m ≤ top, over its length."""
    nodes, weights = gauss_legendre(n)
    most = min(top, math.ceil(8 * n / (math.pi * length)) if length > 0 else 0)  # beyond these it is of order one
    phases = np.pi * length * np.arange(1, most + 1)
    error = 0.0
    for part in np.array_split(phases, math.ceil(max(len(phases) * n, 1) / _TABLE)):
        exact = (np.exp(1j * part) - 1) / (1j * part)
        error = max(error, float(np.abs(np.exp(1j * part[:, None] * nodes) @ weights - exact).max(initial=0)))
    return error
