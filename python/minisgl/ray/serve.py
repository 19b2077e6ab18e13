"""minisgl as a deployment of Ray Serve: our application in each of its replicas, whose ranks are
child processes of the replica's.

    serve run minisgl.ray.serve:app model=Qwen/Qwen3-0.6B num_replicas=2
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from minisgl.config import ServerArgs
from minisgl.flags import parse_args, parse_switch
from minisgl.log import start_logging
from minisgl.ray.embedded import EmbeddedServer

if TYPE_CHECKING:
    from ray.serve import Application

# What of the arguments is Ray Serve's business; all others are flags of minisgl-serve.
DEPLOYMENT_OPTIONS = ("num_replicas", "max_ongoing_requests")
MAX_ONGOING = 1024  # requests per replica; the engine's own queue bounds them, with an answer


class MinisglApp:
    """A replica of the deployment. Ray Serve awaits the constructor, and asks for the application
    then.
    """

    async def __init__(self, args: ServerArgs) -> None:  # type: ignore[misc]
        start_logging(args.log_level, args.log_format)
        self._server = await EmbeddedServer.start(args)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._server.app

    def check_health(self) -> None:
        """Ray Serve replaces a replica where it raises."""
        self._server.check_health()

    async def __del__(self) -> None:
        """Ray Serve awaits it at a replica's end, after its last request."""
        if hasattr(self, "_server"):
            await self._server.close()


def actor_options(args: ServerArgs, gpus: bool) -> dict[str, float]:
    """What a replica needs of its host: it has all ranks."""
    ranks = args.tp * args.replicas
    return {"num_cpus": ranks * (args.num_threads or 1), "num_gpus": ranks if gpus else 0}


def _words(name: str, value: Any) -> list[str]:
    """A flag on a command line. A switch has no value there."""
    switches = {one.name.replace("_", "-") for one in fields(ServerArgs) if one.type == "bool"}
    if name not in switches:
        return [f"--{name}={value}"]
    return [f"--{name}"] if parse_switch(str(value)) else []


def _has_gpus() -> bool:
    """Whether the cluster has any. `serve run` asks for the application before it has connected:
    then this does, to the cluster that it is about to join, and leaves again.
    """
    import click
    import ray

    if ray.is_initialized():
        return bool(ray.cluster_resources().get("GPU", 0) > 0)
    command = click.get_current_context(silent=True)
    ray.init(address=command and command.params.get("address"), namespace="serve")
    try:
        return bool(ray.cluster_resources().get("GPU", 0) > 0)
    finally:
        ray.shutdown()


def app(options: Mapping[str, Any]) -> Application:
    """The builder that `serve run` and `serve deploy` call with their arguments: flags of
    minisgl-serve without their dashes (a switch is 1), and DEPLOYMENT_OPTIONS.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray import serve

    given = {name.replace("_", "-"): value for name, value in options.items()}
    own = {name: given.pop(name.replace("_", "-"), None) for name in DEPLOYMENT_OPTIONS}
    args = parse_args([word for flag in given.items() for word in _words(*flag)], {})
    gpus = args.device != "cpu" and _has_gpus()
    deployment = serve.deployment(
        serve.ingress()(MinisglApp),
        name="minisgl",
        num_replicas=int(own["num_replicas"] or 1),
        max_ongoing_requests=int(own["max_ongoing_requests"] or MAX_ONGOING),
        ray_actor_options=actor_options(args, gpus),
    )
    return deployment.bind(args)
