"""Read finished run folders; tables, plots, one HTML page."""

from transfuse.report.fuse_parts import Pair
from transfuse.report.fuse_tables import coverage_table
from transfuse.report.load import Report, read_report
from transfuse.report.page import write_page
from transfuse.report.run_tables import report_tables
from transfuse.report.table import result_table

__all__ = ["Pair", "Report", "coverage_table", "read_report", "report_tables", "result_table", "write_page"]
