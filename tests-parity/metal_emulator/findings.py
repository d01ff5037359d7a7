"""What the strict check and the lint report."""

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Finding:
    """A place in the Metal source that breaks a rule. Line 0: the whole source."""

    line: int
    rule: str
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: [{self.rule}] {self.message}"
