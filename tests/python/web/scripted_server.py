"""The server over an engine that says what a test asks for, by the first word of the message.

Prints its address. Tokens are the bytes of the text, four in each event. Run it from the root:
`python -m tests.python.web.scripted_server [OPTIONS]`, with options of ServerArgs as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys

from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import Finish
from minisgl.text.formats import AnswerFormats
from tests.python.server.byte_tokenizer import END
from tests.python.server.conftest import running
from tests.python.server.fake_engine import FakeClient, output

HOSTILE = """<script>document.title = "owned"</script>
<img src=x onerror="document.title='owned'"> <a href="javascript:document.title='owned'">raw</a>

[link](javascript:document.title='owned') ![picture](http://127.0.0.1:9/x.png) <svg onload=alert(1)>

```html" onmouseover="document.title='owned'
</code></pre><script>document.title = "owned"</script>
```

$\\href{javascript:document.title='owned'}{x}$ and $x^2$ <style>body{display:none}</style>
<iframe src="http://127.0.0.1:9/"></iframe><form action="http://127.0.0.1:9/"><button>b</button></form>
"""

SHOWCASE = """The **discriminant** of $ax^2 + bx + c = 0$ decides how many real roots there are:

$$x = \\frac{-b \\pm \\sqrt{b^2 - 4ac}}{2a}$$

```python
def roots(a: float, b: float, c: float) -> list[float]:
    \"\"\"Real roots, the smaller one first.\"\"\"
    d = b * b - 4 * a * c
    return [] if d < 0 else sorted((-b + s * d**0.5) / (2 * a) for s in (1, -1))
```

| discriminant | real roots |
|---|---|
| above 0 | 2 |
| 0 | 1 |
| below 0 | 0 |

1. Compute $d$.
2. Take its root, **if** there is one.
"""


def long_text(count: int) -> str:
    """Paragraphs, lists, code and tables, so many pieces of four bytes."""
    parts, size = [], 0
    while size < 4 * count:
        number = len(parts)
        part = (
            f"## Part {number}\n\nA paragraph with **strong** words, `code` and a formula "
            f"$x_{number}^2$. It goes on for a while, as answers do, and ends here.\n\n"
            f"- one\n- two\n- three\n\n```python\nprint({number})\n```\n\n"
        )
        parts.append(part)
        size += len(part)
    return "".join(parts)[: 4 * count]


CALL = """<think>
Two numbers are to be added.
</think>

<tool_call>
{"name": "add", "arguments": {"a": 1, "b": 2}}
</tool_call>"""

# As the tests' own, for tools, too.
TEMPLATE = (
    "{% for message in messages %}{{ '<turn>' + message.role[0] + ':' + message.content + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>a:' }}{% endif %}"
)


def text_for(words: list[str], prompt: str) -> tuple[str, float]:
    """The answer, and seconds between two of its parts."""
    kind = words[0] if words else ""
    if kind == "add":
        _, _, result = prompt.rpartition("\nt:")
        return (f"The sum is {result.split()[0]}." if "\nt:" in prompt else CALL), 0
    if kind == "hostile":
        return HOSTILE, 0
    if kind == "showcase":
        return SHOWCASE, 0.001
    if kind == "deep":
        return ">" * int(words[1]) + " bottom", 0
    if kind == "long":
        return long_text(int(words[1])), 1 / float(words[2])
    if kind == "slow":
        return "".join(f"{number} " for number in range(int(words[1]))), 0.05
    return f"You said: {' '.join(words)}", 0


async def script(client: FakeClient, stream: TokenStream) -> None:
    """Says it, four bytes at a time; an answer that was begun goes on where it stopped."""
    prompt = bytes(token for token in stream.request.prompt if token < 256).decode()
    asked, _, begun = prompt.rpartition("u:")[2].partition("\n")
    begun = begun.removeprefix("a:").rstrip("\n")
    text, seconds = text_for(asked.split(), prompt)
    rest = text[len(begun) :] if begun and text.startswith(begun) else text
    data, most = rest.encode(), stream.request.params.max_tokens
    finish: Finish = "stop" if len(data) < most else "length"
    data = data[:most]
    loop = asyncio.get_running_loop()
    due = loop.time()
    for position in range(0, len(data), 4):
        due += seconds
        await asyncio.sleep(max(0, due - loop.time()) if seconds else 0)
        if stream.finished:
            return
        stream.deliver(output(stream, list(data[position : position + 4])))
    stream.deliver(output(stream, [END] if finish == "stop" else [], finish))


async def main(arguments: list[str]) -> None:
    """Serves until it is ended."""
    options = json.loads(arguments[0]) if arguments else {}
    formats = AnswerFormats(tools="hermes", reasoning="qwen3")
    async with running(
        script, max_model_len=2**20, formats=formats, template=TEMPLATE, **options
    ) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
