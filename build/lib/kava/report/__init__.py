"""The A/B report: statistics, charts and one self-contained page made from the files of finished runs."""

from kava.report.build import build_report
from kava.report.inputs import ReferenceFiles, ReportInputs, RunFiles
from kava.report.page import render_html

__all__ = ["ReferenceFiles", "ReportInputs", "RunFiles", "build_report", "render_html"]
