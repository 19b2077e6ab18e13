"""A real server over a small random model that knows tools, for the clients that people have.

Such a model can't choose well: what it says is forced by a form, or by calls that it must make.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import openai
import pytest

from tests.python.launch.servers import ServerProcess
from tests.python.running.conftest import PROGRAM
from tests.python.running.tiny_model import make_tiny_model

MODEL = "tiny"
# Calls as Hermes has them, and their results.
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for message in messages %}"
    "{{ '<turn>' + message.role[0] + ':' + (message.content or '') }}"
    "{% for call in message.tool_calls or [] %}"
    "<tool_call>\n{{ call.function | tojson }}\n</tool_call>"
    "{% endfor %}{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>a:' }}{% endif %}"
)


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's; it ends in order."""
    model = make_tiny_model(tmp_path_factory.mktemp("clients") / "model", template=TEMPLATE)
    server = ServerProcess(
        model,
        tmp_path_factory.mktemp("server"),
        *("--kv-cache-tokens", "64K", "--served-model-name", MODEL, "--strict-requests"),
        program=PROGRAM,
    )
    yield f"http://127.0.0.1:{server.wait_ready()}"
    server.end_in_order()
    assert " ERROR " not in server.output


@pytest.fixture
async def client(address: str) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"{address}/v1"
    async with openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0) as client:
        yield client
