"""What a study file may say: its tables and keys, their types and limits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**48)]
Saves = Annotated[int, Field(ge=2, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Activation = Literal["tanh", "relu", "leaky_relu", "gelu", "sin", "linear"]
# The methods of `integrate` by name; a test compares them.
Method = Literal["auto", "bosh3", "dopri5", "dopri8", "rkc2", "rock4", "tsit5"]
# Results are found by these names, on disk and on the page, beside what the diagnostics find.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class _Table(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, strict=True)


class Bundled(_Table):
    """A data set that comes with scikit-learn."""

    source: Literal["digits", "iris", "wine", "breast_cancer"]
    samples: Count | None = None
    standardize: bool = False
    centre: bool = False


class Diabetes(_Table):
    """The bundled data set for regression."""

    source: Literal["diabetes"]
    samples: Count | None = None
    standardize: bool = False
    centre: bool = False


class Clusters(_Table):
    """Gaussian clusters round the corners of a simplex, one for each class."""

    source: Literal["clusters"]
    classes: Annotated[int, Field(ge=2)] = 3
    per_class: Count = 20
    dimension: Count = 2
    spread: Positive = 0.05


class Waves(_Table):
    """A sum of cosines of the inputs on the unit box."""

    source: Literal["waves"]
    samples: Count = 32
    dimension: Count = 1
    frequencies: Annotated[list[Positive], Field(min_length=1)] = [1.0]


class Teacher(_Table):
    """Outputs of a random tanh network of these widths, plus noise."""

    source: Literal["teacher"]
    samples: Count = 64
    widths: Annotated[list[Count], Field(min_length=2)] = [4, 8, 1]
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class Csv(_Table):
    """A CSV file with one row for each sample."""

    source: Literal["csv"]
    path: Annotated[Path, Field(strict=False)]
    target: str | int | list[str] | list[int]
    inputs: list[str] | list[int] | None = None
    classes: bool | None = None
    standardize: bool = False
    centre: bool = False
    sha256: str | None = Field(default=None, description="found when the study is read")


class Npz(_Table):
    """A NumPy archive with two arrays; nothing in it is unpickled."""

    source: Literal["npz"]
    path: Annotated[Path, Field(strict=False)]
    inputs: str = "inputs"
    targets: str = "targets"
    standardize: bool = False
    centre: bool = False
    sha256: str | None = Field(default=None, description="found when the study is read")


Data = Annotated[Bundled | Diabetes | Clusters | Waves | Teacher | Csv | Npz, Field(discriminator="source")]


class Mlp(_Table):
    """Dense layers."""

    kind: Literal["mlp"]
    hidden: list[Count] = [32]
    activation: Activation = "tanh"
    bias: bool = True
    scale: Positive = 1.0


class DeepLinear(_Table):
    """A product of matrices."""

    kind: Literal["deep_linear"]
    hidden: list[Count] = [16]
    scale: Positive = 1.0
    balanced: bool = False


class Convnet(_Table):
    """Convolutions and pooling, then dense layers; for the images of `digits`."""

    kind: Literal["convnet"]
    channels: Annotated[list[Count], Field(min_length=1)] = [6]
    dense: list[Count] = [16]
    kernel: Count = 3
    activation: Activation = "relu"
    pooling: Literal["max", "mean", "stride", "none"] = "max"
    scale: Positive = 1.0


Network = Annotated[Mlp | DeepLinear | Convnet, Field(discriminator="kind")]


class Flow(_Table):
    """An exact flow, solved to a tolerance."""

    kind: Literal["flow"]
    field: Literal["gradient", "adapted"] = "gradient"
    damping: Literal["auto"] | Annotated[float, Field(ge=0, allow_inf_nan=False)] = "auto"
    t1: Positive
    saves: Saves = 61
    rtol: Positive = 1e-6
    atol: Positive = 1e-9
    method: Method = "auto"
    stop_below: Positive | None = None


class Descent(_Table):
    """Steps of finite size: of a flow's field, or of an optimiser."""

    kind: Literal["descent"]
    method: Literal["gradient", "adapted", "sgd", "momentum", "adam"] = "gradient"
    step_size: Positive | None = None
    stable_fraction: Positive | None = None
    of: Name = "flow"
    steps: Count | None = None
    t1: Positive | None = None
    saves: Saves = 61
    stop_below: Positive | None = None

    @model_validator(mode="after")
    def _one_of_each(self) -> "Descent":
        if (self.step_size is None) == (self.stable_fraction is None):
            raise ValueError(
                "give `step_size`, or `stable_fraction` of 2/(largest sharpness along the run `of`), and not both"
            )
        if (self.steps is None) == (self.t1 is None):
            raise ValueError("give `steps` or the end time `t1`, and not both")
        if self.t1 is not None and self.method not in ("gradient", "adapted"):
            raise ValueError(f'`t1` is for fields; give `steps` for the optimiser "{self.method}"')
        if self.stable_fraction is not None and self.method != "gradient":
            raise ValueError('`stable_fraction` is about method = "gradient"; give `step_size`')
        return self


class LeastSquares(_Table):
    """Damped adapted steps with geodesic acceleration, to the minimum (`fb.optim.minimize`)."""

    kind: Literal["least_squares"]
    steps: Count = 100
    tolerance: Positive = 1e-20
    acceleration: bool = True


Run = Annotated[Flow | Descent | LeastSquares, Field(discriminator="kind")]


class Canonical(_Table):
    """The disparity matrix and the stall index along every run; for up to ten inputs."""

    degree: Annotated[int, Field(ge=0)] = 7
    kind: Literal["cosine", "fourier"] = "cosine"
    index_set: Literal["box", "l1", "ball", "hc"] = "box"


class Diagnostics(_Table):
    """What is recorded beside the costs."""

    sharpness: bool = Field(default=True, description="curvature: the largest Hessian eigenvalue along every run")
    fidelity: bool = Field(default=True, description="fidelity: how far descents are from the flow of the same times")
    certificate: bool = Field(default=False, description="fidelity: a bound of that distance for each gradient descent")
    rank: bool = Field(default=False, description="tangent: singular values of the differential at start and end")
    canonical: Canonical | None = Field(default=None, description="canonical: disparity matrix along every run")
    balance: bool = Field(default=False, description="balance: how far layers are from balanced, along every run")
    minimizer: bool = Field(default=False, description="minimizers: what an explicit minimiser of this data costs")


class Budget(_Table):
    """Limits of one point of the study."""

    seconds: Positive | None = Field(default=None, description="of each run; one that takes longer ends there")
    memory_gib: Positive = 1.0
    checkpoint_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0


class Point(_Table):
    """One run of everything: what a study says, at one place of its sweep, for one seed."""

    data: Data
    network: Network
    loss: Literal["squared_error", "cross_entropy"] = "squared_error"
    precision: Literal["float64", "float32"] = "float64"
    runs: Annotated[dict[Name, Run], Field(min_length=1)]
    diagnostics: Diagnostics = Diagnostics()
    budget: Budget = Budget()
    save_parameters: Literal["all", "last"] = "last"
    seed: Seed = 0

    @model_validator(mode="after")
    def _consistent(self) -> "Point":
        if "diagnostics" in self.runs:
            raise ValueError("[runs.diagnostics] has the name of what all diagnostics take; call it something else")
        for name, run in self.runs.items():
            if isinstance(run, Descent) and run.stable_fraction is not None:
                other = self.runs.get(run.of)
                if not isinstance(other, Flow) or other.field != "gradient":
                    raise ValueError(
                        f"[runs.{name}] takes a fraction of the stable step size along `of = {run.of!r}`, which is no "
                        "gradient flow of this study"
                    )
                if not self.diagnostics.sharpness:
                    raise ValueError(f"[runs.{name}] has a `stable_fraction`: set `diagnostics.sharpness = true`")
        if isinstance(self.network, Convnet) and self.data.source != "digits":
            raise ValueError('network.kind = "convnet" is for the images of data.source = "digits"')
        if self.loss == "cross_entropy" and self.data.source in ("diabetes", "waves", "teacher"):
            raise ValueError(f'loss = "cross_entropy" needs classes, which data.source = {self.data.source!r} has not')
        if any(isinstance(run, LeastSquares) for run in self.runs.values()) and self.loss != "squared_error":
            raise ValueError('a run of kind "least_squares" needs loss = "squared_error"')
        return self


class Study(Point):
    """A study file: a point, and what of it varies."""

    format: Literal[1] = 1
    name: Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*[^\x00-\x1f\x7f\s][^\x00-\x1f\x7f]*$")]
    description: str = ""
    seeds: Annotated[int, Field(ge=1, le=100_000)] | Annotated[list[Seed], Field(min_length=1)] = [0]
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}

    @model_validator(mode="before")
    @classmethod
    def _seeds_not_seed(cls, document: Any) -> Any:
        if isinstance(document, dict) and "seed" in document:
            raise ValueError("a study has `seeds`, a list or how many; there is no key `seed`")
        return document


def allowed_keys(model: type[BaseModel], tables: Sequence[Any], values: Any) -> list[str]:
    """List the keys of the table of a document that has these keys above it."""
    here: list[type[BaseModel]] = [model]
    for name in tables:
        values = values.get(name) if isinstance(values, dict) else None
        annotations = [kind.model_fields[name].annotation for kind in here if name in kind.model_fields]
        here = [kind for annotation in annotations for kind in _models(annotation)] or here
        tagged = [kind for kind in here if isinstance(values, dict) and _tag(kind) & set(map(str, values.values()))]
        here = tagged or here
    return sorted({key for kind in here for key in kind.model_fields if key not in ("sha256", "seed")})


def _models(annotation: Any) -> list[type[BaseModel]]:
    """List the tables in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _models(part)]


def _tag(kind: type[BaseModel]) -> set[str]:
    """The values that tell a table of this kind from others."""
    fields = [kind.model_fields[name].annotation for name in ("source", "kind") if name in kind.model_fields]
    return {str(value) for field in fields for value in get_args(field)}
