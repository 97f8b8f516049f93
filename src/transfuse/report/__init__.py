"""Read finished run folders; tables, plots, one HTML page."""

from transfuse.report.load import Report, read_report
from transfuse.report.page import write_page
from transfuse.report.table import result_table

__all__ = ["Report", "read_report", "result_table", "write_page"]
