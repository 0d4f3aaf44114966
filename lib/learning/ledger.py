"""The ledger: what a task may spend and has spent."""

from dataclasses import dataclass, field

from lib.common.errors import UserError


@dataclass
class Ledger:
    """The compute that a task may spend and has spent, in MACs, by what it was spent on."""

    limit: int
    spent: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.spent.values())

    @property
    def left(self) -> int:
        return self.limit - self.total

    def charge(self, purpose: str, macs: int) -> None:
        """Spend `macs` on `purpose`. Raises UserError before the limit would be crossed."""
        if macs > self.left:
            raise UserError(f"{purpose} needs {macs} MACs and {self.left} of {self.limit} are left: raise the budget.")
        self.spent[purpose] = self.spent.get(purpose, 0) + macs
