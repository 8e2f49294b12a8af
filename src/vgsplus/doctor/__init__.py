"""What is there, what is wrong and what to do: of this machine, a corpus, a run or a reproduction.

Every subject has a file that gathers findings, which are data; `table` alone shows them.
"""

from vgsplus.doctor.examination import examine
from vgsplus.doctor.findings import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding", "examine"]
