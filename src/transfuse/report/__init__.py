"""Read finished run folders; tables, plots, one HTML page."""

from transfuse.report.load import Report, read_report
from transfuse.report.page import write_page
from transfuse.report.table import result_table
from transfuse.report.transfer_tables import report_tables

__all__ = ["Report", "read_report", "report_tables", "result_table", "write_page"]
