"""Tables, figures and the page that shows them."""

from vgsplus.report.gallery import gallery_items
from vgsplus.report.page import check_report_folder, write_report
from vgsplus.report.results import Results
from vgsplus.report.tables import print_tables

__all__ = ["Results", "check_report_folder", "gallery_items", "print_tables", "write_report"]
