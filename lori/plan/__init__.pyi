from .cell import Cell as Cell
from .make import Plan as Plan
from .make import check as check
from .make import make_plan as make_plan
from .make import plan_study as plan_study
from .text import to_markdown as to_markdown
from .token_counts import TokenCounts as TokenCounts
from .token_counts import count_tokens as count_tokens
