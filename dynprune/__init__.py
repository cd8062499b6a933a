"""dynprune: inference that adapts to its traffic.

It watches which units of a trained model are used, stops computing the others, and brings them back
when the traffic changes.
"""

from dynprune import ops  # noqa: F401  (registers the ops)
from dynprune._info import info
from dynprune._version import __version__
from dynprune.config import Config
from dynprune.control.criteria import GroupView
from dynprune.control.usage import UsageStats
from dynprune.lowering.trace import TraceError
from dynprune.model import AcceleratedModel, accelerate

__all__ = [
    "AcceleratedModel",
    "Config",
    "GroupView",
    "TraceError",
    "UsageStats",
    "__version__",
    "accelerate",
    "info",
]
