"""Models on the GPU: random ones of each family against transformers on the same GPU (f32 is the
truth, its own bf16 the measure of what bf16 costs), and the default model against the CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from minisgl import LLM, PoolingParams, SamplingParams, StructuredOutputsParams, _native
from minisgl.rank.cuda_library import load_cublas
from tests.python.models.fp8_checkpoints import FORMS, round_inputs, write_fp8
from tests.python.models.gguf_files import write_gguf
from tests.python.models.int4_checkpoints import save_int4
from tests.python.models.test_default_model import NEW_TOKENS, PROMPTS
from tests.python.models.tiny_models import (
    FAMILIES,
    WITH_EXPERTS,
    normalized,
    rms_error,
    save_random_model,
    tiny_config,
    token_ids,
    transformers_hidden,
    transformers_logits,
)
from tests.python.running.tiny_model import make_tiny_model
from tests.python.server.byte_tokenizer import VOCAB_SIZE, make_backend
from tests.reference.dequantize_gguf import dequantize_gguf

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(_native.num_gpus() == 0, reason="no CUDA device"),
]

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
DENSE = [family for family in FAMILIES if family not in WITH_EXPERTS]
NEAR_TIE = 0.5  # in log probability: int8 products of 4-bit weights on the CPU, bf16 on the GPU


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", DENSE)
def test_prefill_chunks_and_decode(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    load_cublas(_native.build_info()["cuda"])
    save_random_model(tiny_config(family), tmp_path, dtype)
    ids = token_ids(75)
    truth = transformers_logits(tmp_path, ids, device="cuda")
    peer = transformers_logits(tmp_path, ids, dtype=torch.bfloat16, device="cuda")
    model = _native.Model(str(tmp_path), page_size=4, max_tokens=len(ids), device="cuda")
    for chunks in ([75], [40, 35], [74, 1], [1] * 75):
        logits = model.forward(ids, chunk_sizes=chunks)
        assert rms_error(logits, truth) <= 1.1 * rms_error(peer, truth)


# Formats by part as small files of Gemma 3 have them, whose rows of 640 are no blocks of 256.
OF_GEMMA = {
    **dict.fromkeys(("q_proj", "k_proj", "o_proj", "gate_proj", "up_proj"), Type.Q5_0),
    **{"v_proj": Type.Q8_0, "down_proj": Type.Q4_K, "embed_tokens": Type.Q8_0},
}
GEMMA_270M: dict[str, Any] = {
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
OF_256: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512}


@pytest.mark.parametrize(
    ("family", "sizes", "quantization", "parts"),
    [
        *(
            ("llama", OF_256, quantization, None)
            for quantization in (
                *(Type.Q4_0, Type.Q4_1, Type.Q4_K, Type.Q5_0, Type.Q5_1, Type.Q5_K),
                *(Type.Q6_K, Type.Q8_0),
            )
        ),
        ("llama", OF_256, Type.Q4_K, {"v_proj": Type.Q6_K, "down_proj": Type.Q6_K}),
        ("gemma3_text", GEMMA_270M, Type.Q6_K, OF_GEMMA),
    ],
)
def test_blocks_as_they_are(
    family: str, sizes: dict[str, Any], quantization: Type, parts: dict[str, Type], tmp_path: Path
) -> None:
    original, file, plain = tmp_path / "hf", tmp_path / "m.gguf", tmp_path / "plain"
    load_cublas(_native.build_info()["cuda"])
    save_random_model(tiny_config(family, **sizes), original)
    write_gguf(original, file, quantization, parts=parts)
    dequantize_gguf(file, plain)
    ids = token_ids(75)
    truth = transformers_logits(plain, ids, device="cuda")
    peer = transformers_logits(plain, ids, dtype=torch.bfloat16, device="cuda")
    model = _native.Model(str(file), page_size=4, max_tokens=len(ids), device="cuda")
    for chunks in ([75], [40, 35], [60, 8, 7], [74, 1], [1] * 75):
        logits = model.forward(ids, chunk_sizes=chunks)
        assert rms_error(logits, truth) <= 1.1 * rms_error(peer, truth)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("awq", {}),
        ("gptq", {"group_size": 64}),
        ("gptq", {"shuffled": True}),
        ("packed", {"symmetric": True, "dtype": torch.bfloat16}),
    ],
)
def test_int4_checkpoints(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    original, folder, plain = tmp_path / "hf", tmp_path / "int4", tmp_path / "plain"
    load_cublas(_native.build_info()["cuda"])
    save_random_model(tiny_config("llama", **OF_256), original)
    save_int4(original, folder, plain, method, **options)
    ids = token_ids(75)
    truth = transformers_logits(plain, ids, device="cuda")
    peer = transformers_logits(plain, ids, dtype=torch.bfloat16, device="cuda")
    model = _native.Model(str(folder), page_size=4, max_tokens=len(ids), device="cuda")
    for chunks in ([75], [60, 8, 7], [1] * 75):
        logits = model.forward(ids, chunk_sizes=chunks)
        assert rms_error(logits, truth) <= 1.1 * rms_error(peer, truth)


def as_fp8(heads: torch.Tensor) -> torch.Tensor:
    """What an fp8 cache holds of keys or values [..., head size]."""
    largest = heads.float().abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest / 448, 1)
    return ((heads.float() / scale).to(torch.float8_e4m3fn).float() * scale).to(heads.dtype)


def attention_over_fp8(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    return sdpa_attention_forward(module, query, as_fp8(key), as_fp8(value), *args, **kwargs)


ALL_ATTENTION_FUNCTIONS["fp8"] = attention_over_fp8


@pytest.mark.parametrize(
    ("family", "kv_dtype", "attention"),
    [
        *((family, "auto", "eager") for family in DENSE),
        # Those without windows, which the reference's attention over fp8 doesn't know.
        *((family, "fp8", "fp8") for family in ("llama", "mistral", "qwen2", "qwen3", "granite")),
    ],
)
def test_replayed_decode(family: str, kv_dtype: str, attention: str, tmp_path: Path) -> None:
    """Log probabilities of decode steps that were recorded, for batches that fill them or don't."""
    save_random_model(tiny_config(family, vocab_size=VOCAB_SIZE), tmp_path, torch.bfloat16)
    make_backend().save(str(tmp_path / "tokenizer.json"))
    # Of Phi-3 all go past the original context, behind which both take the long factors.
    lengths = (30, 33, 40, 47, 64) if family == "phi3" else (1, 3, 17, 40, 64)
    prompts = [token_ids(length, seed=length) for length in lengths]
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=20)
    with LLM(str(tmp_path), device="cuda", kv_dtype=kv_dtype, show_progress=False) as llm:
        results = llm.generate(prompts, params, use_tqdm=False)
    errors = []  # ours and the peer's, of each prompt
    for prompt, result in zip(prompts, results, strict=True):
        output = result.outputs[0]
        ids = prompt + output.token_ids[:-1]
        truth, peer = (
            torch.log_softmax(
                torch.from_numpy(
                    transformers_logits(
                        tmp_path, ids, dtype=dtype, device="cuda", attention=attention
                    )[len(prompt) - 1 :]
                ),
                -1,
            ).numpy()
            for dtype in (torch.float32, torch.bfloat16)
        )
        assert output.logprobs is not None
        seen = [[pair[0] for pair in token.alternatives] for token in output.logprobs]
        ours = np.array([[pair[1] for pair in token.alternatives] for token in output.logprobs])
        rows = np.arange(len(seen))[:, None]
        errors.append(
            tuple(rms_error(logprobs, truth[rows, seen]) for logprobs in (ours, peer[rows, seen]))
        )
    if kv_dtype == "auto":
        assert all(ours <= 1.1 * theirs for ours, theirs in errors), errors
    else:  # a rounding to 3 bits of mantissa that turns is chance, so all prompts together
        ours, theirs = np.mean(errors, axis=0)
        assert ours <= 1.1 * theirs, errors


@pytest.mark.parametrize(
    ("family", "kv_dtype"), [*((family, "auto") for family in DENSE), ("qwen3", "fp8")]
)
def test_deterministic_answers(family: str, kv_dtype: str, tmp_path: Path) -> None:
    save_random_model(tiny_config(family, vocab_size=VOCAB_SIZE), tmp_path, torch.bfloat16)
    make_backend().save(str(tmp_path / "tokenizer.json"))
    assert_deterministic(tmp_path, kv_dtype)


@pytest.mark.parametrize("form", ["fp8", "int4"])
def test_deterministic_answers_of_quantised_weights(form: str, tmp_path: Path) -> None:
    """They become bf16, whose products are by the same kernel for any number of rows."""
    plain, folder = tmp_path / "plain", tmp_path / form
    save_random_model(
        tiny_config("llama", hidden_size=256, intermediate_size=512, vocab_size=VOCAB_SIZE),
        plain,
        torch.bfloat16,
    )
    if form == "fp8":
        write_fp8(plain, folder, "channel")
    else:
        save_int4(plain, folder, tmp_path / "dequantised", "awq")
    make_backend().save(str(folder / "tokenizer.json"))
    assert_deterministic(folder, "auto")


def test_deterministic_answers_are_not_for_experts(tmp_path: Path) -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs compute capability 9.0")
    make_tiny_model(tmp_path, family="qwen3_moe")
    with pytest.raises(Exception, match="--deterministic is not for mixtures of experts on a GPU"):
        LLM(str(tmp_path), device="cuda", deterministic=True, show_progress=False)


def assert_deterministic(folder: Path, kv_dtype: str) -> None:
    """Bit for bit the same together and alone, in chunks, and without recorded steps."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs compute capability 9.0")
    prompts = [token_ids(length, seed=length) for length in (1, 3, 17, 40, 64, 200)]
    params = SamplingParams(temperature=0.8, seed=5, max_tokens=20, ignore_eos=True, logprobs=20)
    answers = []
    for options in ({}, {"max_batch_tokens": 24, "disable_cuda_graph": True}):
        with LLM(
            str(folder),
            device="cuda",
            kv_dtype=kv_dtype,
            deterministic=True,
            show_progress=False,
            **options,  # type: ignore[arg-type]
        ) as llm:
            together = llm.generate(prompts, params, use_tqdm=False)
            alone = [llm.generate([prompt], params, use_tqdm=False)[0] for prompt in prompts]
        answers += [[result.outputs[0].logprobs for result in said] for said in (together, alone)]
    assert all(said == answers[0] for said in answers)


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
def test_the_default_model_says_what_it_says_on_a_cpu(kv_dtype: str, default_gguf: Path) -> None:
    """Greedy text, up to the first token where the CPU finds the GPU's nearly as likely."""
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=20)
    answers = {}
    for device, cache in (("cpu", "auto"), ("cuda", kv_dtype)):
        with LLM(str(default_gguf), device=device, kv_dtype=cache, show_progress=False) as llm:
            results = llm.generate(PROMPTS, params, use_tqdm=False)
        answers[device] = [result.outputs[0] for result in results]
    margins = []
    for cpu, gpu in zip(answers["cpu"], answers["cuda"], strict=True):
        pairs = list(zip(cpu.token_ids, gpu.token_ids, strict=True))
        at = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
        if at is not None:
            assert cpu.logprobs is not None
            logprobs = dict(cpu.logprobs[at].alternatives)
            margins.append((at, logprobs[cpu.token_ids[at]] - logprobs[gpu.token_ids[at]]))
    print(f"{len(PROMPTS) - len(margins)} of {len(PROMPTS)} the same; (token, margin): {margins}")
    assert all(margin < NEAR_TIE for _, margin in margins)


@pytest.mark.parametrize(("cache", "least"), [("auto", 0.99), ("fp8", 0.95)])
def test_embeddings(cache: str, least: float, tmp_path: Path) -> None:
    """Long ones take several steps. They begin alike: last rows have cached prefixes."""
    folder = make_tiny_model(tmp_path / "tiny", family="qwen3")
    prompts = [token_ids(length, seed=1) for length in (1, 3, 700, 3000)]
    with LLM(
        str(folder), device="cuda", kv_dtype=cache, max_model_len=4096, show_progress=False
    ) as llm:
        last = llm.embed(prompts, use_tqdm=False)
        mean = llm.embed(prompts, PoolingParams(pooling="mean"), use_tqdm=False)
    for i, prompt in enumerate(prompts):
        states = transformers_hidden(folder, prompt, device="cuda")
        for ours, truth in ((last[i], states[-1]), (mean[i], states.mean(0))):
            assert np.dot(ours.outputs.embedding, normalized(truth)) > least


FP8_SIZES = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": VOCAB_SIZE}


@pytest.mark.parametrize("form", FORMS)
def test_fp8_weights(form: str, tmp_path: Path) -> None:
    """Up to 64 rows activations are bf16; above they are e4m3, and as far off as that makes
    them.
    """
    load_cublas(_native.build_info()["cuda"])
    config = tiny_config("llama", **FP8_SIZES, max_position_embeddings=512)
    plain = save_random_model(config, tmp_path / "plain", torch.bfloat16)
    ignore = ["layers.1.mlp"]
    folder = write_fp8(plain, tmp_path / "fp8", form, ignore=ignore)
    ids = token_ids(300, VOCAB_SIZE)
    truth = transformers_logits(folder / "widened", ids, device="cuda")
    peer = transformers_logits(folder / "widened", ids, dtype=torch.bfloat16, device="cuda")
    model = _native.Model(str(folder), page_size=4, max_tokens=len(ids), device="cuda")
    for chunks in ([60] * 5, [64, 8, 60, 64, 41, 62, 1], [60] + [4] * 60):
        logits = model.forward(ids, chunk_sizes=chunks)
        assert rms_error(logits, truth) <= 1.1 * rms_error(peer, truth)
    rounded = transformers_logits(
        folder / "widened", ids, device="cuda", prepare=lambda peer: round_inputs(peer, ignore)
    )
    assert rms_error(model.forward(ids), truth) <= 1.1 * rms_error(rounded, truth)


def test_fp8_serving(tmp_path: Path) -> None:
    """Weights that became FP8 at load: recorded steps, prefixes that were computed before, grammars
    and many requests at once give what one request alone gives, as long as activations stay bf16.
    """
    make_tiny_model(tmp_path, max_position=512, **FP8_SIZES)
    shared = token_ids(96, VOCAB_SIZE)
    prompts = [shared + token_ids(3 + i, VOCAB_SIZE, seed=i) for i in range(40)]
    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=5)
    written = SamplingParams(
        temperature=1, max_tokens=24, structured_outputs=StructuredOutputsParams(regex="[ab]{3,9}c")
    )
    with LLM(
        str(tmp_path), device="cuda", quantize="fp8", max_batch_tokens=64, show_progress=False
    ) as llm:
        assert llm.info.weight_dtype == "fp8"
        alone = llm.generate(prompts[:1], greedy, use_tqdm=False)
        batch = llm.generate(prompts, greedy, use_tqdm=False)
        answers = llm.generate(prompts[:8], written, use_tqdm=False)
    assert all(result.num_cached_tokens >= 64 for result in batch)
    one, again = alone[0].outputs[0], batch[0].outputs[0]
    assert one.logprobs is not None
    assert again.logprobs is not None
    for ours, theirs in zip(one.logprobs, again.logprobs, strict=True):
        first, second = dict(ours.alternatives), dict(theirs.alternatives)
        common = first.keys() & second.keys()
        assert all(abs(first[token] - second[token]) < NEAR_TIE for token in common)
        if ours.alternatives[0][0] != theirs.alternatives[0][0]:
            break  # a near-tie: what follows differs
    for answer in answers:
        text = answer.outputs[0].text
        assert text.endswith("c"), text
        assert set(text[:-1]) <= set("ab"), text
