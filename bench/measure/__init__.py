"""Measuring: A against B beyond the noise, peak memory, host cost, errors, and their record."""

from jepa_fast.bench.measure.case import Case, OwnTimes, Trial, run_case
from jepa_fast.bench.measure.compare import Comparison, Times, compare
from jepa_fast.bench.measure.error import ErrorCheck, check_error
from jepa_fast.bench.measure.host import HostOverhead, host_overhead
from jepa_fast.bench.measure.machine import Machine, fingerprint, load_average
from jepa_fast.bench.measure.memory import peak_memory, saved_for_backward
from jepa_fast.bench.measure.records import Record, Row, load_record, save_record

__all__ = [
    "Case",
    "Comparison",
    "ErrorCheck",
    "HostOverhead",
    "Machine",
    "OwnTimes",
    "Record",
    "Row",
    "Times",
    "Trial",
    "check_error",
    "compare",
    "fingerprint",
    "host_overhead",
    "load_average",
    "load_record",
    "peak_memory",
    "run_case",
    "save_record",
    "saved_for_backward",
]
