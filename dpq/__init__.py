"""dpq: product quantization of generative models, 1 to 4 bits per weight.

Every verb of the ``dpq`` command is a function here, with the same names, defaults and results::

    dpq.compress("builtin:tiny-llama", "out", bits=2)
    model = dpq.load("out")
    print(dpq.evaluate("out", baseline="builtin:tiny-llama").table())

A torch module in memory is quantized by ``quantize_``; ``save`` writes it, ``load_into`` reads it.

A verb takes the arguments of its class in ``dpq_core.jobs.arguments`` (``help(dpq.compress)`` lists
them), the adapter's own options as further keywords (``dpq.adapters()`` and ``dpq adapters NAME``
list those), ``recipe`` (a YAML file), ``data`` (see ``dpq.data``) and ``progress`` (a callback).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dpq import data
from dpq_core import errors
from dpq_core.errors import AdapterError, ArtifactError, DPQError, SourceError, SpecError
from dpq_core.spec import Override, QuantSpec
from dpq_core.version import __version__

if TYPE_CHECKING:
    from dpq_core.jobs.adapters import AdapterReport, adapters
    from dpq_core.jobs.calibrate import Calibrated
    from dpq_core.jobs.compare import compare
    from dpq_core.jobs.compare_report import CompareReport
    from dpq_core.jobs.compress_file import FileReport
    from dpq_core.jobs.compress_report import CompressReport
    from dpq_core.jobs.demo import DemoReport, demo
    from dpq_core.jobs.evaluate import EvaluationReport
    from dpq_core.jobs.in_memory import quantize_
    from dpq_core.jobs.inspect import InspectReport
    from dpq_core.jobs.module_file import load_into, save
    from dpq_core.jobs.plan import PlanReport
    from dpq_core.jobs.report_page.job import PageReport, report
    from dpq_core.jobs.verbs import (
        ExportReport,
        SampleReport,
        calibrate,
        evaluate,
        export,
        inspect,
        load,
        sample,
        serve,
        verify,
    )
    from dpq_core.jobs.whole_model import compress, plan
    from dpq_core.plugin.new_adapter import new_adapter

__all__ = [
    "AdapterError",
    "AdapterReport",
    "ArtifactError",
    "Calibrated",
    "CompareReport",
    "CompressReport",
    "DPQError",
    "DemoReport",
    "EvaluationReport",
    "ExportReport",
    "FileReport",
    "InspectReport",
    "Override",
    "PageReport",
    "PlanReport",
    "QuantSpec",
    "SampleReport",
    "SourceError",
    "SpecError",
    "__version__",
    "adapters",
    "calibrate",
    "compare",
    "compress",
    "data",
    "demo",
    "errors",
    "evaluate",
    "export",
    "inspect",
    "load",
    "load_into",
    "new_adapter",
    "plan",
    "quantize_",
    "report",
    "sample",
    "save",
    "serve",
    "verify",
]

_JOBS = "dpq_core.jobs"

_LAZY = {
    "AdapterReport": f"{_JOBS}.adapters",
    "Calibrated": f"{_JOBS}.calibrate",
    "CompareReport": f"{_JOBS}.compare_report",
    "CompressReport": f"{_JOBS}.compress_report",
    "DemoReport": f"{_JOBS}.demo",
    "EvaluationReport": f"{_JOBS}.evaluate",
    "ExportReport": f"{_JOBS}.verbs",
    "FileReport": f"{_JOBS}.compress_file",
    "InspectReport": f"{_JOBS}.inspect",
    "PageReport": f"{_JOBS}.report_page.job",
    "PlanReport": f"{_JOBS}.plan",
    "SampleReport": f"{_JOBS}.verbs",
    "adapters": f"{_JOBS}.adapters",
    "calibrate": f"{_JOBS}.verbs",
    "compare": f"{_JOBS}.compare",
    "compress": f"{_JOBS}.whole_model",
    "demo": f"{_JOBS}.demo",
    "evaluate": f"{_JOBS}.verbs",
    "export": f"{_JOBS}.verbs",
    "inspect": f"{_JOBS}.verbs",
    "load": f"{_JOBS}.verbs",
    "load_into": f"{_JOBS}.module_file",
    "new_adapter": "dpq_core.plugin.new_adapter",
    "plan": f"{_JOBS}.whole_model",
    "quantize_": f"{_JOBS}.in_memory",
    "report": f"{_JOBS}.report_page.job",
    "sample": f"{_JOBS}.verbs",
    "save": f"{_JOBS}.module_file",
    "serve": f"{_JOBS}.verbs",
    "verify": f"{_JOBS}.verbs",
}
"""Public name -> the module that defines it; imported on first use, because it needs torch."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
