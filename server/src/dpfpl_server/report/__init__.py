"""report.html: one self-contained page that tells management, lawyers and engineers what a pilot brought and cost.

Its words are in texts_en.toml and texts_ja.toml, its layout in ``templates``, its numbers in ``facts``.
"""

from dpfpl_server.report.page import read_roi, render_report, write_report
from dpfpl_server.report.texts import LANGUAGES

__all__ = ["LANGUAGES", "read_roi", "render_report", "write_report"]
