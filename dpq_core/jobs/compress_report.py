"""CompressReport: the result of compressing a model, tensor by tensor."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpq_core.jobs.report import Report, Table, facts
from dpq_core.sizes import format_seconds, format_shape, format_size

if TYPE_CHECKING:
    from dpq_core.data.sequential.contract import SegmentReport
    from dpq_core.jobs.calibrate import Calibrated


@dataclass(frozen=True, kw_only=True)
class TensorReport:
    """The result for one tensor; ``relative_error`` is None where it was kept dense."""

    name: str
    shape: tuple[int, ...]
    nbytes: int
    bits_per_weight: float
    relative_error: float | None
    seconds: float
    resumed: bool


ROWS = 40
"""Most tensors in the table of a report; ``to_json`` has them all."""


@dataclass(frozen=True, kw_only=True)
class CompressReport(Report):
    """The result of compressing a model.

    Attributes:
        artifact: path of the artifact.
        tensors: one report per tensor.
        weights: number of weights.
        source_nbytes: size of the source's tensors in bytes.
        nbytes: size of the artifact on disk in bytes, every file counted.
        seconds: wall time of this run.
        peak_memory: highest resident memory of this process in bytes.
        segments: reports of the segments that were quantized with statistics, in the order in
            which the model runs.
        data_free: names of the tensors that were quantized without statistics although there was
            a task: no Linear, Conv2d or Embedding that got inputs in it has them as its weight.
        data: descriptions of the data that was read.
        calibration: result of a calibration afterwards, which then wrote ``artifact``.
    """

    artifact: Path
    tensors: tuple[TensorReport, ...]
    weights: int
    source_nbytes: int
    nbytes: int
    seconds: float
    peak_memory: int
    segments: tuple[SegmentReport, ...] = ()
    data_free: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    calibration: Calibrated | None = None

    def to_json(self) -> dict[str, Any]:
        """The report with the ratios that the table shows."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "calibration"}
        calibrated = {} if self.calibration is None else self.calibration.to_json()
        return {
            **values,
            "tensors": [asdict(tensor) for tensor in self.tensors],
            "segments": [asdict(segment) for segment in self.segments],
            "data_free": list(self.data_free),
            "data": list(self.data),
            "artifact": str(self.artifact),
            "bits_per_weight": 8 * self.nbytes / self.weights,
            "ratio_16_bit": 2 * self.weights / self.nbytes,
            "ratio_32_bit": 4 * self.weights / self.nbytes,
            **({"calibration": calibrated} if calibrated else {}),
        }

    def tables(self) -> tuple[Table, ...]:
        """A table of the quantized tensors, worst first, and one of the totals."""
        quantized = [t for t in self.tensors if t.relative_error is not None]
        rows = tuple(
            (
                t.name,
                format_shape(t.shape),
                f"{t.bits_per_weight:.3f}",
                f"{t.relative_error:.4f}",
                format_size(t.nbytes),
                "resumed" if t.resumed else f"{t.seconds:.2f}",
            )
            for t in sorted(quantized, key=lambda t: -(t.relative_error or 0.0))[:ROWS]
        )
        columns = ("tensor", "shape", ">bits/weight", ">relative error", ">size", ">seconds")
        sums = facts(
            str(self.artifact),
            ("size before", format_size(self.source_nbytes)),
            ("size after", f"{format_size(self.nbytes)} on disk, every file counted"),
            ("against 16 bits", f"{2 * self.weights / self.nbytes:.2f}x smaller"),
            ("against 32 bits", f"{4 * self.weights / self.nbytes:.2f}x smaller"),
            ("true bits per weight", f"{8 * self.nbytes / self.weights:.3f}"),
            *(("data", description) for description in self.data),
            ("time", format_seconds(self.seconds)),
            ("peak memory", format_size(self.peak_memory)),
        )
        tables = (Table(f"Quantized tensors, {len(quantized)}, worst first", columns, rows), sums)
        return tables if self.calibration is None else (*tables, *self.calibration.tables())

    def remarks(self) -> tuple[str, ...]:
        """A line on the number of tensors that the table leaves out."""
        more = sum(t.relative_error is not None for t in self.tensors) - ROWS
        return (f"{more} more; `dpq inspect` lists them all",) if more > 0 else ()
