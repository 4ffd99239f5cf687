"""Photo libraries on disk: indexed once, kept up to date, searched in milliseconds.

Built on LanceDB (extra `retrieval`), which is imported when a library is opened and not before.
"""

from iwm.index.filters import Filter
from iwm.index.library import Index
from iwm.index.record import PhotoRecord
from iwm.index.report import IndexReport, Remark

__all__ = ["Filter", "Index", "IndexReport", "PhotoRecord", "Remark"]
