"""What a tokenizer puts before and after a text that is encoded with special tokens: BOS, EOS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

_PROBE = "a"


@dataclass(frozen=True)
class TextEnd:
    """BOS or EOS, and whether it is added. `add` None: as the tokenizer does already."""

    token_id: int | None
    add: bool | None


def set_text_ends(backend: tokenizers.Tokenizer, *, bos: TextEnd, eos: TextEnd) -> None:
    """Makes `backend` begin each text with BOS and end it with EOS, or not; what else it puts there
    stays.
    """
    from tokenizers import processors

    before, after = _around(backend)
    first = _changed(before, bos, at_start=True)
    last = _changed(after, eos, at_start=False)
    if (first, last) == (before, after):
        return
    names = {token_id: backend.id_to_token(token_id) for token_id in [*first, *last]}
    single = [*(f"{names[i]}:0" for i in first), "$A:0", *(f"{names[i]}:0" for i in last)]
    backend.post_processor = processors.TemplateProcessing(
        single=single,
        pair=[*single, "$B:1"],
        special_tokens=[(name, token_id) for token_id, name in names.items()],
    )


def _around(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """What `backend` puts before and after a text now."""
    text = backend.encode(_PROBE, add_special_tokens=False).ids
    ids = backend.encode(_PROBE, add_special_tokens=True).ids
    if not text:  # the vocabulary can't write the probe
        return ids, []
    start = next((i for i in range(len(ids)) if ids[i : i + len(text)] == text), 0)
    return ids[:start], ids[start + len(text) :]


def _changed(ids: list[int], end: TextEnd, *, at_start: bool) -> list[int]:
    if end.token_id is None or end.add is None:
        return ids
    there = bool(ids) and ids[0 if at_start else -1] == end.token_id
    if there == end.add:
        return ids
    if at_start:
        return [end.token_id, *ids] if end.add else ids[1:]
    return [*ids, end.token_id] if end.add else ids[:-1]
