"""What the exact rewrites of a model did and what they left, in sentences for the report."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..sites import Refusal


@dataclass(frozen=True)
class Journal:
    """Passes write into it as they go.

    Attributes:
        done: one sentence a rewrite.
        refusals: the values that a rewrite nearly fitted, and why it did not.
    """

    done: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def refuse(self, name: object, reason: str) -> None:
        """Keeps why a rewrite left the value `name`."""
        self.refusals.append(Refusal(str(name), reason))

    def sentences(self, *, refusals: bool) -> list[str]:
        """What was done, and if wanted what was not and why."""
        refused = [f"{refusal.name}: {refusal.reason}" for refusal in self.refusals]
        return [*self.done, *(refused if refusals else ())]


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """`1 linear`, `2 linears`."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
