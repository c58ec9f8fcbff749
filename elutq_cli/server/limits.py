"""What the server bounds, whatever a request asks for."""

from dataclasses import dataclass

from elutq_cli.generation.thinking import NO_BUDGET
from elutq_cli.server.fields import Fields

NO_LIMIT = -1
"""Front ends of other servers write no limit and every token as -1."""


@dataclass(frozen=True)
class Limits:
    """Bounds of every text.

    Attributes:
        max_tokens: tokens at most; None: what the context has room for.
        reasoning_budget: tokens of thoughts at most; NO_BUDGET: as many as the model likes.
    """

    max_tokens: int | None = None
    reasoning_budget: int = NO_BUDGET

    def most_tokens(self, fields: Fields, default: int) -> int:
        """Return how many tokens a text may have: as a body asks for, but no more than the limit."""
        asked = fields.integer("max_tokens", NO_LIMIT, 1 << 31)
        n_predict = default if asked is None else asked
        if self.max_tokens is None:
            return n_predict
        return self.max_tokens if n_predict == NO_LIMIT else min(n_predict, self.max_tokens)

    def most_thoughts(self, fields: Fields) -> int:
        """Return how many tokens of thoughts a reply may have; NO_BUDGET: any number."""
        asked = fields.integer("thinking_budget_tokens", NO_BUDGET, 1 << 31)
        budgets = [budget for budget in (asked, self.reasoning_budget) if budget not in (None, NO_BUDGET)]
        return min(budgets, default=NO_BUDGET)
