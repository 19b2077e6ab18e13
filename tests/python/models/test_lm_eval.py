"""lm_eval finds the same log likelihoods by HTTP as in transformers with the dequantised model.

It takes a minute or two, and packages (lm_eval and what it needs, 200 MB) that are fetched into a
virtual environment in the folder which MINISGL_LM_EVAL names; else the test is skipped.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tests.python.launch.servers import ServerProcess

FOLDER = os.environ.get("MINISGL_LM_EVAL", "")
pytestmark = pytest.mark.skipif(
    not FOLDER, reason="MINISGL_LM_EVAL names no folder to install lm_eval into"
)

VERSION = "0.4.13"
PROSE = Path(__file__).parents[2] / "reference" / "prose.txt"
TASKS = ("endings", "paragraphs")
TASK_FILES = {
    "endings": """
task: endings
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{beginning}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}]
""",
    "paragraphs": """
task: paragraphs
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
""",
}


def documents(task: str) -> list[dict[str, Any]]:
    """The second halves of sentences, each to be told from those of three others; paragraphs."""
    text = PROSE.read_text()
    if task == "paragraphs":
        return [{"text": paragraph} for paragraph in text.split("\n\n") if paragraph.strip()]
    halves = []
    for sentence in re.split(r"(?<=\.)\s+", text):
        words = sentence.split()
        if len(words) >= 10:
            half = len(words) // 2
            halves.append((" ".join(words[:half]), " ".join(words[half:])))
    return [
        {
            "beginning": beginning,
            "choices": [halves[(number + k) % len(halves)][1] for k in range(4)],
            "answer": 0,
        }
        for number, (beginning, _) in enumerate(halves)
    ]


def interpreter(folder: Path) -> Path:
    """A Python that has lm_eval beside the packages of this one."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        own = next(folder.glob("lib/python*/site-packages"))
        paths = dict.fromkeys([sysconfig.get_path("purelib"), *sys.path])
        here = [path for path in paths if path.endswith("site-packages")]
        (own / "packages_of_the_tests.pth").write_text("\n".join(here))
    if subprocess.run(
        [str(python), "-c", "import lm_eval, accelerate"], capture_output=True
    ).returncode:
        wanted = f"lm_eval[api,hf]=={VERSION}"
        subprocess.run([str(python), "-m", "pip", "install", "-q", wanted], check=True)
    return python


def evaluate(
    python: Path, tasks: Path, results: Path, model: str, arguments: str
) -> dict[str, Any]:
    """By task: the log likelihood of each of its requests, in their order, and the metrics."""
    command = [str(python), "-m", "lm_eval", "--model", model, "--model_args", arguments]
    command += ["--tasks", ",".join(TASKS), "--include_path", str(tasks), "--log_samples"]
    command += ["--output_path", str(results), "--device", "cpu", "--batch_size", "4"]
    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(results / "cache")},
    )
    assert ran.returncode == 0, ran.stderr
    found = {}
    for task in TASKS:
        (path,) = results.rglob(f"samples_{task}_*.jsonl")
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        samples.sort(key=lambda sample: sample["doc_id"])
        found[task] = [_likelihoods(sample["resps"]) for sample in samples]
    return found


def _likelihoods(responses: Any) -> list[float]:
    """The numbers that come first in each response, however lm_eval nests them."""
    if isinstance(responses, list) and len(responses) == 2 and not isinstance(responses[0], list):
        return [float(responses[0])]
    if isinstance(responses, list):
        return [number for one in responses for number in _likelihoods(one)]
    return [float(responses)]


def test_log_likelihoods_are_those_of_transformers(default_gguf: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    from minisgl.tokenizer import load_tokenizer
    from tests.reference.dequantize_gguf import dequantize_gguf

    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for task in TASKS:
        data = tasks / f"{task}.jsonl"
        data.write_text("".join(json.dumps(one) + "\n" for one in documents(task)))
        (tasks / f"{task}.yaml").write_text(TASK_FILES[task].format(data=data))
    exact = tmp_path / "exact"
    exact.mkdir()
    dequantize_gguf(default_gguf, exact)
    PreTrainedTokenizerFast(
        tokenizer_object=load_tokenizer(str(default_gguf))._backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    ).save_pretrained(exact)
    python = interpreter(Path(FOLDER))
    expected = evaluate(python, tasks, tmp_path / "hf", "hf", f"pretrained={exact},dtype=float32")

    server = ServerProcess(default_gguf, tmp_path / "server", program=("-m", "minisgl"))
    try:
        url = f"http://127.0.0.1:{server.wait_ready()}/v1/completions"
        # Its tokenizer is the server's, by /tokenizer_info, /tokenize and /detokenize.
        arguments = f"base_url={url},model={default_gguf.stem},tokenizer_backend=remote"
        found = evaluate(python, tasks, tmp_path / "http", "local-completions", arguments)
    finally:
        server.signal(signal.SIGTERM)
    assert server.wait() == 0, server.output

    for task in TASKS:
        assert [len(one) for one in found[task]] == [len(one) for one in expected[task]]
        totals = [sum(map(sum, results[task])) for results in (found, expected)]
        worst = max(
            abs(ours / theirs - 1)
            for one, other in zip(found[task], expected[task], strict=True)
            for ours, theirs in zip(one, other, strict=True)
        )
        print(
            f"{task}: {sum(map(len, found[task]))} log likelihoods, together {totals[0]:.2f}, "
            f"by transformers {totals[1]:.2f}; the one furthest off by {worst:.2%}"
        )
        assert abs(totals[0] / totals[1] - 1) < 0.01
