"""LLM: the engine offline, in this process: a list of prompts in, a list of results out."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from minisgl.config import GENERATION_CONFIGS, STEP_TIMEOUT, EngineSettings
from minisgl.engine.request import check_request
from minisgl.engine.similarity import cosine, numbers, pairs
from minisgl.environment import default_cache_dir
from minisgl.ipc.messages import EngineInfo, EngineOptions, EngineStats
from minisgl.offline.grammars import with_budget, with_grammar
from minisgl.offline.in_flight import MAX_IN_FLIGHT, run_all
from minisgl.offline.local_model import embed_all, open_local_model
from minisgl.offline.prompts import (
    GivenPrompt,
    Prompt,
    PromptRequest,
    as_params,
    as_poolings,
    as_prompts,
    as_salts,
    as_standings,
)
from minisgl.offline.results import (
    EmbeddingRequestResult,
    EmbeddingResult,
    RequestResult,
    Sample,
    ScoringRequestResult,
    ScoringResult,
    make_samples,
)
from minisgl.sampling_params import (
    ParameterError,
    PoolingParams,
    SamplingParams,
    pooled_params,
)
from minisgl.text.formats import choose_formats
from minisgl.text.parsers import REASONING_PARSERS

if TYPE_CHECKING:
    from types import TracebackType

    from minisgl.tokenizer import Tokenizer

Message = dict[str, Any]  # {"role": ..., "content": ...}


class LLM:
    """A model loaded into this process, or with `tp` over so many processes. Close it, or use it in
    a `with`.

    The arguments are those of `minisgl-serve`; 0 and "auto" are chosen. ModelError, with one
    sentence, when the model can't be had or used. One thread at a time.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        revision: str | None = None,
        chat_template: str | None = None,
        reasoning_parser: str = "auto",
        generation_config: str = "auto",
        cache_dir: str | Path | None = None,
        tp: int = 1,
        comm: str = "auto",
        step_timeout: float = STEP_TIMEOUT,
        show_progress: bool = True,
        lora: Mapping[str, str | Path] | None = None,
        **options: Any,
    ) -> None:
        """`lora`: folders of LoRA adapters by the names that prompts have them by.
        `options` are the fields of EngineSettings (minisgl/config/engine.py). TypeError for another
        name, ValueError for a value out of its range.
        """
        known = [one.name for one in fields(EngineSettings)]
        for name in options:
            if name not in known:
                raise TypeError(f"LLM has no option {name!r}; it has {', '.join(known)}")
        settings = {"max_waiting": MAX_IN_FLIGHT, "enable_lora": bool(lora), **options}
        if generation_config not in GENERATION_CONFIGS:
            raise ValueError(
                f"generation_config must be one of {', '.join(GENERATION_CONFIGS)}, "
                f"got {generation_config!r}"
            )
        if reasoning_parser not in ("auto", "none", *REASONING_PARSERS):
            raise ValueError(
                f"reasoning_parser must be auto, none or one of {', '.join(REASONING_PARSERS)}, "
                f"got {reasoning_parser!r}"
            )
        if not 1 <= step_timeout <= 86400:
            raise ValueError(f"step_timeout must be between 1 and 86400, got {step_timeout}")
        EngineSettings(**settings)  # out of range is said before the model is looked for
        measured = str((default_cache_dir() or "") if cache_dir is None else cache_dir)

        def engine_options(path: str) -> EngineOptions:
            return EngineOptions(model_path=path, cache_dir=measured, **settings)

        self._model = open_local_model(
            model,
            engine_options,
            revision=revision,
            chat_template=chat_template,
            generation_config=generation_config,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            show_progress=show_progress,
            weights=settings.get("load_format") != "dummy",
            tp=tp,
            comm=comm,
            step_timeout=step_timeout,
        )
        self._formats = choose_formats("none", reasoning_parser, self.tokenizer.chat_template)
        try:
            for name, path in (lora or {}).items():
                self.load_adapter(name, path)
        except BaseException:
            self.close()
            raise

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Loads the LoRA adapter in a folder in PEFT's form; prompts with lora=name have it. Needs
        `lora` or enable_lora=True. AdapterError.
        """
        self._model.run(self._model.engine.load_adapter(name, str(path)))

    def unload_adapter(self, name: str) -> None:
        """No prompt has it any more. AdapterError."""

        async def unload() -> None:
            self._model.engine.unload_adapter(name)

        self._model.run(unload())

    def _with_adapter(
        self, params: Sequence[SamplingParams], lora: str | None
    ) -> list[SamplingParams]:
        """ValueError for one that isn't loaded."""
        if lora is None:
            return list(params)
        adapter = self._model.engine.adapters.find(lora)
        if adapter is None:
            raise ValueError(f"there is no adapter {lora!r}")
        return [msgspec.structs.replace(one, adapter=adapter.id) for one in params]

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._model.text.tokenizer

    @property
    def info(self) -> EngineInfo:
        """What was loaded and chosen."""
        return self._model.engine.info

    def stats(self) -> EngineStats:
        """The engine's counts so far: tokens, steps, preemptions, pages."""
        return self._model.engine.stats

    def get_default_sampling_params(self) -> SamplingParams:
        """What a prompt is sampled with where no sampling_params are given: as the model's makers
        publish it (generation_config.json), with generation_config "none" SamplingParams().
        """
        return SamplingParams(**self._defaults())

    def _defaults(self) -> dict[str, Any]:
        return dict(self._model.sampling_defaults)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int | Sequence[int] = 0,
        cache_salt: str | Sequence[str | None] | None = None,
        lora: str | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestResult]:
        """Completes each prompt: one result per prompt, in their order. A prompt is text, token
        ids, or as in vLLM a dict: {"prompt": TEXT} or {"prompt_token_ids": IDS}, either with its
        own "cache_salt".

        `sampling_params`, `priority` and `cache_salt` are one for all or one per prompt.
        `sampling_params` is taken as it is; without it, get_default_sampling_params() counts.
        `lora`: the name of the adapter that all have.
        `priority` is -100 to 100: lower ones go first. Prompts with different salts share nothing
        in the prefix cache. ValueError, before anything runs, when a prompt or its parameters can't
        be served; EngineError when the engine dies.
        """
        given = as_prompts(prompts)
        params = as_params(
            self.get_default_sampling_params() if sampling_params is None else sampling_params,
            len(given),
        )
        params = self._with_adapter(params, lora)
        standings, salts = as_standings(priority, len(given)), as_salts(cache_salt, given)
        requests = [
            PromptRequest(prompt.text, self._ids_of(prompt), one, standing, salt)
            for prompt, one, standing, salt in zip(given, params, standings, salts, strict=True)
        ]
        return self._run(requests, continues_prompt=True, use_tqdm=use_tqdm)

    def _ids_of(self, prompt: GivenPrompt) -> list[int]:
        if prompt.token_ids is not None:
            return prompt.token_ids
        return self.tokenizer.encode(prompt.text or "")

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int | Sequence[int] = 0,
        cache_salt: str | Sequence[str | None] | None = None,
        tools: list[dict[str, Any]] | None = None,
        template_kwargs: dict[str, Any] | None = None,
        lora: str | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestResult]:
        """Answers one conversation or each of several, through the model's chat template.

        Without `sampling_params` an answer is sampled as get_default_sampling_params() says, and
        may be as long as fits. `priority`, `cache_salt`, `lora` and errors are as for `generate`;
        ChatTemplateError (a ValueError) when the template refuses the messages.
        """
        several = bool(messages) and not isinstance(messages[0], dict)
        conversations = cast(
            "Sequence[Sequence[Message]]", messages if several else [messages] if messages else []
        )
        texts = self._model.run(self._render(conversations, tools, template_kwargs))
        ids = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        if sampling_params is None:
            limit = self.info.max_model_len
            params = [
                SamplingParams(max_tokens=max(1, limit - len(prompt)), **self._defaults())
                for prompt in ids
            ]
        else:
            params = as_params(sampling_params, len(ids))
        params = self._with_adapter(params, lora)
        standings = as_standings(priority, len(ids))
        salts = as_salts(cache_salt, [GivenPrompt(text) for text in texts])
        requests = [
            PromptRequest(*one) for one in zip(texts, ids, params, standings, salts, strict=True)
        ]
        return self._run(requests, continues_prompt=False, use_tqdm=use_tqdm)

    async def _render(
        self,
        conversations: Sequence[Sequence[Message]],
        tools: list[dict[str, Any]] | None,
        template_kwargs: dict[str, Any] | None,
    ) -> list[str]:
        render = self._model.text.render_chat
        return [await render(list(chat), template_kwargs, tools=tools) for chat in conversations]

    def _run(
        self, requests: Sequence[PromptRequest], *, continues_prompt: bool, use_tqdm: bool
    ) -> list[RequestResult]:
        if any(request.params.pooling is not None for request in requests):
            raise ParameterError("pooling", "pooling is for embed(): it makes no answer")
        requests = self._model.run(self._with_grammars(requests))
        self._check(requests)
        samples = [make_samples(request) for request in requests]
        everything = [sample for group in samples for sample in group]
        self._model.run(self._complete(everything, continues_prompt, use_tqdm))
        return [
            RequestResult(
                prompt=request.text,
                prompt_token_ids=request.ids,
                outputs=[sample.result() for sample in group],
                prompt_logprobs=group[0].prompt_logprobs,
                num_cached_tokens=group[0].num_cached,
            )
            for request, group in zip(requests, samples, strict=True)
        ]

    def _check(self, requests: Sequence[PromptRequest]) -> None:
        """ParameterError for the first that can't be served."""
        for number, request in enumerate(requests):
            try:
                check_request(request.ids, request.params, self.info)
            except ParameterError as error:
                where = f"prompt {number}: " if len(requests) > 1 else ""
                raise ParameterError(error.parameter, f"{where}{error}") from error

    async def _with_grammars(self, requests: Sequence[PromptRequest]) -> list[PromptRequest]:
        """The requests with grammars in the place of structured outputs, and with what budgets of
        thoughts need. ParameterError.
        """
        text = self._model.text
        made = []
        for request in requests:
            params = await with_budget(text, request, self._formats)
            made.append(replace(request, params=await with_grammar(text, params)))
        return made

    async def _complete(
        self, samples: Sequence[Sample], continues_prompt: bool, use_tqdm: bool
    ) -> None:
        async def complete(sample: Sample) -> int:
            await self._complete_one(sample, continues_prompt)
            return len(sample.token_ids)

        await run_all(samples, complete, unit="completion", use_tqdm=use_tqdm)

    async def _complete_one(self, sample: Sample, continues_prompt: bool) -> None:
        pieces = self._model.answer(
            sample.request.ids,
            sample.params,
            standing=sample.request.standing,
            prefix_salt=sample.request.prefix_salt,
            continues_prompt=continues_prompt,
            whole=True,
        )
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                sample.add(piece)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        priority: int | Sequence[int] = 0,
        cache_salt: str | Sequence[str | None] | None = None,
        use_tqdm: bool = True,
    ) -> list[EmbeddingRequestResult]:
        """The embedding of each prompt, in their order, by the model's last hidden states.

        `pooling_params` is one for all or one per prompt, by default PoolingParams(); the rest is
        as for `generate`.
        """
        pooling = PoolingParams() if pooling_params is None else pooling_params
        given = as_prompts(prompts)
        requests = self._pooled(given, pooling, priority, cache_salt)
        outputs = self._model.run(embed_all(self._model, requests, use_tqdm=use_tqdm))
        return [
            EmbeddingRequestResult(
                prompt=request.text,
                prompt_token_ids=request.ids,
                outputs=EmbeddingResult(numbers(output.embedding)),
                num_cached_tokens=output.num_cached,
            )
            for request, output in zip(requests, outputs, strict=True)
        ]

    def score(
        self,
        text_1: Prompt | Sequence[Prompt],
        text_2: Prompt | Sequence[Prompt],
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = True,
    ) -> list[ScoringRequestResult]:
        """How much each text of `text_2` is like the one of `text_1`, or like the one at its place:
        the cosine of their embeddings. Errors are as for `embed`.
        """
        first, second = as_prompts(text_1), as_prompts(text_2)
        compared = pairs(len(first), len(second))
        pooling = PoolingParams() if pooling_params is None else pooling_params
        normalized = [
            msgspec.structs.replace(one, normalize=True) for one in as_poolings(pooling, 1)
        ]
        requests = self._pooled([*first, *second], normalized[0], 0, None)
        outputs = self._model.run(embed_all(self._model, requests, use_tqdm=use_tqdm))
        return [
            ScoringRequestResult(
                prompt_token_ids=[*requests[one].ids, *requests[other].ids],
                outputs=ScoringResult(cosine(outputs[one].embedding, outputs[other].embedding)),
            )
            for one, other in compared
        ]

    def _pooled(
        self,
        prompts: Sequence[GivenPrompt],
        pooling_params: PoolingParams | Sequence[PoolingParams],
        priority: int | Sequence[int],
        cache_salt: str | Sequence[str | None] | None,
    ) -> list[PromptRequest]:
        poolings = as_poolings(pooling_params, len(prompts))
        standings, salts = as_standings(priority, len(prompts)), as_salts(cache_salt, prompts)
        requests = [
            PromptRequest(prompt.text, self._ids_of(prompt), pooled_params(one), standing, salt)
            for prompt, one, standing, salt in zip(prompts, poolings, standings, salts, strict=True)
        ]
        self._check(requests)
        return requests

    def close(self) -> None:
        """Stops the engine. Safe to call again."""
        self._model.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
