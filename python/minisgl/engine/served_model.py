"""The model that a replica serves."""

from __future__ import annotations

from dataclasses import dataclass

from minisgl.ipc.messages import NamedModel


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model revision, from the moment in which replicas are told to serve it. A stream goes on
    only where this very object is served: another one of the same name may stand for other files,
    as a folder may have changed meanwhile.
    """

    path: str  # of this host's copy
    name: str  # as the operator calls it
    revision: str = ""  # of a Hugging Face id: the commit, as far as it is known
    named: NamedModel | None = None  # for other hosts; None: what they were started with
