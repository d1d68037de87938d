"""A control group for the engine alone: an exact second witness of its peak, and a limit that is real.

Versions 1 and 2 of the kernel's memory controller. A group is made for each engine start; its peak is
set back once, when the engine can take requests, so that loading and serving have a peak each. It
counts what is charged (page cache, tmpfs, page tables too), not what is resident.
"""

from memplan.cgroups.gauges import GroupMemory, fields_in, pressure_in
from memplan.cgroups.group import Group, make_group
from memplan.cgroups.peak import PeakMark, peak_mark_of
from memplan.cgroups.place import Place, place_at, place_in, place_of

__all__ = [
    "Group",
    "GroupMemory",
    "PeakMark",
    "Place",
    "fields_in",
    "make_group",
    "peak_mark_of",
    "place_at",
    "place_in",
    "place_of",
    "pressure_in",
]
