"""Every way a call can go wrong, one class each.

A message has three parts: what was given, what is needed, and what to do next. They are the three arguments of every
class here, so that no message can leave one out; `error.given`, `error.needed` and `error.fix` keep them apart.
"""

from typing import Any

__all__ = [
    "ApplyError",
    "BlowUpError",
    "BottleneckError",
    "CertificateError",
    "CheckpointError",
    "CheckpointMismatchError",
    "ClassMeansError",
    "ClusterError",
    "ConditioningWarning",
    "ConstructionError",
    "DifferentialRankError",
    "DivergedError",
    "EmptyDataError",
    "FibrationError",
    "FileFormatError",
    "FileTooLargeError",
    "FlowError",
    "IntegerDataError",
    "MemoryBudgetError",
    "MissingExtraError",
    "MissingFileError",
    "NoMinimizerWarning",
    "NonFiniteCurvatureError",
    "NonFiniteDataError",
    "NonsmoothModelWarning",
    "ObserverError",
    "OutputDirectoryError",
    "ParameterError",
    "PickledDataError",
    "PrecisionError",
    "PrecisionWarning",
    "RankDeficientWarning",
    "RankLossError",
    "ResolutionWarning",
    "RunBusyError",
    "RunError",
    "ShapeError",
    "ShiftError",
    "SingularProductError",
    "StepSizeError",
    "StoreWarning",
    "StudyFileError",
    "TargetError",
    "TimeMismatchError",
    "TimeSpanError",
    "TruncatedFileError",
    "UnknownNameError",
    "VersionWarning",
]


class FibrationError(Exception):
    """The base of every exception that Fibration raises on purpose.

    **Arguments:** `given`: what the call was given; `needed`: what it needs; `fix`: what to do next. Each is a
    sentence or the part of one, without the final full stop.

    ```python
    >>> from fibration.errors import ShapeError
    >>> print(ShapeError("inputs hold 3 samples and targets 4", "one target for each sample", "drop a target"))
    inputs hold 3 samples and targets 4. Needed: one target for each sample. To mend it: drop a target.

    ```
    """

    given: str
    needed: str
    fix: str

    def __init__(self, given: str, needed: str, fix: str) -> None:
        super().__init__(given, needed, fix)
        self.given, self.needed, self.fix = given, needed, fix

    def __str__(self) -> str:
        return f"{self.given}. Needed: {self.needed}. To mend it: {self.fix}."


class ShapeError(FibrationError, ValueError):
    """Arrays whose shapes disagree with each other or with what the call takes."""


class NonFiniteDataError(FibrationError, ValueError):
    """Data, weights or initial parameters that hold NaN or infinity."""


class NonFiniteCurvatureError(FibrationError, ArithmeticError):
    """A second derivative that is NaN or infinite."""


class IntegerDataError(FibrationError, TypeError):
    """Integers where real numbers are needed."""


class EmptyDataError(FibrationError, ValueError):
    """A data set without samples."""


class ApplyError(FibrationError, ValueError):
    """An `apply` that fails on one sample, is written for a batch, or returns the wrong shape."""


class ParameterError(FibrationError, ValueError):
    """Parameters without a floating-point leaf, or with a structure that does not fit."""


class UnknownNameError(FibrationError, ValueError):
    """A name that is not on the list of those allowed."""


class TimeSpanError(FibrationError, ValueError):
    """An end time that is not after the start, or saved times outside the span."""


class StepSizeError(FibrationError, ValueError):
    """A step size or a number of steps that is not positive, or does not belong to the call."""


class TargetError(FibrationError, ValueError):
    """Targets of classes that are not affinely independent."""


class ClassMeansError(FibrationError, ValueError):
    """Class means that are linearly or affinely dependent where a construction needs them to be independent."""


class ShiftError(FibrationError, ValueError):
    """A base point outside the interval in which it separates a class from the others."""


class ConstructionError(FibrationError, ValueError):
    """Data for which the construction that was asked for does not exist, or was not found."""


class BottleneckError(FibrationError, ValueError):
    """A product whose rank is larger than a width that it has to pass through: its fibre is empty."""


class RankLossError(FibrationError, ValueError):
    """Balancing that would lower the rank of a layer, since the orbit is not closed."""


class SingularProductError(FibrationError, ValueError):
    """A product of lower rank than a formula needs."""


class UnstableSystemError(FibrationError, ValueError):
    """A linear system with poles that are not inside the region of stability, where a call needs them there."""


class FlowError(FibrationError, TypeError):
    """A flow or field that returns something other than a velocity shaped like the parameters."""


class TimeMismatchError(FibrationError, ValueError):
    """Two trajectories that share no saved times and so cannot be compared."""


class CertificateError(FibrationError, ValueError):
    """A run that no certificate speaks of: not gradient descent on the given problem, or not a repeatable one."""


class PrecisionError(FibrationError, ValueError):
    """A result that would lie below the rounding error of the floating-point type."""


class MemoryBudgetError(FibrationError, MemoryError):
    """A call whose result would not fit in the memory budget; raised before anything is computed."""


class CheckpointError(FibrationError, OSError):
    """A checkpoint that cannot be read or written; `error.trajectory` holds what a run computed before, if anything."""

    trajectory: Any = None


class CheckpointMismatchError(FibrationError, ValueError):
    """A checkpoint that was written by another call."""


class OutputDirectoryError(FibrationError, OSError):
    """A directory that cannot be made or written to."""


class StoreError(FibrationError, OSError):
    """A run store, or something in it, that cannot be found, read or written, or that cannot hold what it is given."""


class RunBusyError(StoreError):
    """A run of a store that another living process is computing."""


class MissingExtraError(FibrationError, ImportError):
    """An optional package that is not installed."""


class StudyFileError(FibrationError, ValueError):
    """A study file that is no TOML, or says what the schema does not allow; the message names lines."""


class ClusterError(FibrationError, RuntimeError):
    """A cluster that cannot be reached, or that is gone before a sweep has ended."""


class MissingFileError(FibrationError, FileNotFoundError):
    """A data file that is not where it was looked for."""


class FileFormatError(FibrationError, ValueError):
    """A data file whose contents are not what its format promises."""


class TruncatedFileError(FileFormatError):
    """A data file that ends before its header says it does."""


class PickledDataError(FileFormatError):
    """A data file that holds pickled Python objects; they are never loaded, since loading one can run any program."""


class FileTooLargeError(FileFormatError, MemoryError):
    """A data file that claims more data than the reader's limit, or than its own size allows."""


class RunError(FibrationError, RuntimeError):
    """The base of errors that end a run; `error.trajectory` holds everything computed until then."""

    trajectory: Any

    def __init__(self, given: str, needed: str, fix: str, trajectory: Any = None) -> None:
        super().__init__(given, needed, fix)
        self.trajectory = trajectory


class DivergedError(RunError):
    """A run that turned non-finite, or whose step size shrank to nothing."""


class DifferentialRankError(RunError):
    """A flow along which the differential of the outputs loses rank, so that it ends there."""


class BlowUpError(RunError):
    """A flow whose parameters run off to infinity in finite time."""


class ObserverError(RunError):
    """An observer that raised, or that returned another shape than before."""


class PrecisionWarning(UserWarning):
    """A computation whose accuracy the floating-point type cannot carry."""


class ConditioningWarning(UserWarning):
    """A result whose digits are lost to ill-conditioned data or weights."""


class ResolutionWarning(UserWarning):
    """Coefficients of a function that the nodes of a quadrature rule do not resolve."""


class RankDeficientWarning(UserWarning):
    """A differential of less than full row rank, so that not every velocity of the outputs can be had."""


class NonsmoothModelWarning(UserWarning):
    """A network with kinks, along which a flow may slide, so that exact laws fail."""


class NoMinimizerWarning(UserWarning):
    """A cost whose infimum is not attained, so that parameters diverge and the decay is only algebraic."""


class VersionWarning(UserWarning):
    """A checkpoint written by other versions of the libraries: the run goes on, but not bit for bit as before."""


class StoreWarning(UserWarning):
    """Something in a run store that cannot be read, and is left out."""
