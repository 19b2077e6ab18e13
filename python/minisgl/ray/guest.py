"""The actor that has the ranks of a group: a NodeAgent in a worker process of Ray's."""

from __future__ import annotations

import asyncio

import msgspec

from minisgl.engine.agent import Home, NodeAgent
from minisgl.engine.local_ranks import RANK_COMMAND
from minisgl.ipc.keeper import AgentSpec
from minisgl.ipc.messages import NamedModel
from minisgl.log import start_logging
from minisgl.model_files.files import ModelError
from minisgl.model_files.source import resolve_model


class RankHost:
    """The ranks are child processes of the actor's: the same program as everywhere. Their native
    threads have no interpreter of Ray's beside them; a rank that dies takes neither the actor nor
    its connection along, so another one is started in its place at once; and the kernel ends them
    with the actor, however Ray ends that.
    """

    def run(self, encoded: bytes) -> str:
        """Serves until the server ends (returns "") or is gone (returns a sentence). `encoded` is
        an AgentSpec. Runs in the worker's main thread: the kernel ends a child with the thread that
        has started it.
        """
        spec = msgspec.msgpack.decode(encoded, type=AgentSpec)
        start_logging(spec.log_level, spec.log_format)

        def find(named: NamedModel) -> str:
            return resolve_model(
                named.model, revision=named.revision, weights=spec.weights, show_progress=False
            ).path

        try:
            path = find(NamedModel(spec.model, spec.revision))
        except ModelError as error:
            return str(error)
        sharers = groups_of_this_node(spec)
        command = spec.command or RANK_COMMAND
        home = Home(path, command, find, sharers, on_gpus=spec.gpus > 0)
        address = (spec.host, spec.port)
        agent = NodeAgent(home, address, spec.secret, spec.number, spec.patience)
        return asyncio.run(agent.run())


def groups_of_this_node(spec: AgentSpec) -> int:
    """How many such groups the actor's host may come to have: they share its memory."""
    import ray

    what, count = ("GPU", spec.gpus) if spec.gpus else ("CPU", spec.cpus)
    own = ray.get_runtime_context().get_node_id()
    total = next(node["Resources"].get(what, 0) for node in ray.nodes() if node["NodeID"] == own)
    return max(1, int(total) // count)
