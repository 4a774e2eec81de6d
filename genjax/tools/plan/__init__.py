"""Plans of runs on devices that are not there: memory, operations, collectives, and the bound on a step's time.

plan.plan(experiment, plan.Options(topology="v5p:4x4x4"))
"""

from genjax.tools.plan.programs import outlined, plan
from genjax.tools.plan.records import Bound, Options, Plan, ProgramPlan
from genjax.tools.plan.searches import best_first, search
from genjax.tools.plan.tables import markdown, ranking, record, recorded, summary, table

__all__ = [
    "Bound",
    "Options",
    "Plan",
    "ProgramPlan",
    "best_first",
    "markdown",
    "outlined",
    "plan",
    "ranking",
    "record",
    "recorded",
    "search",
    "summary",
    "table",
]
