"""The tokens with which a model is asked for what stands between two texts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

# What stands before the text before the gap, before the text behind it, and where the answer
# begins: the names that vocabularies have for these tokens.
NAMES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
    ("<PRE>", "<SUF>", "<MID>"),
)


@dataclass(frozen=True)
class FillInMiddle:
    """A model's three tokens, as its vocabulary writes them."""

    prefix: str
    suffix: str
    middle: str

    def prompt(self, before: str, behind: str) -> str:
        """The text whose continuation belongs between `before` and `behind`."""
        return f"{self.prefix}{before}{self.suffix}{behind}{self.middle}"


def find_fill_in_middle(
    added: Collection[str], named: tuple[str, str, str] | None = None
) -> FillInMiddle | None:
    """The tokens among `added`, those that are found whole in a text; None where one is missing.

    `named` are those that the model's file names itself.
    """
    candidates = NAMES if named is None else (named, *NAMES)
    for names in candidates:
        if all(name in added for name in names):
            return FillInMiddle(*names)
    return None
