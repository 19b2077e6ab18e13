"""What every API that completes prompts shares: from a CompletionRequest to what the engine is
asked for, as chat_core.py has it for conversations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from minisgl.server import checks
from minisgl.server.generation import AskedPrompt, Generation
from minisgl.server.logprobs import check_prompt_logprobs
from minisgl.server.prompts import CompletionPrompt, encode_prompts
from minisgl.server.structured import grammar_for
from minisgl.tokenizer import DetokenizerOptions

if TYPE_CHECKING:
    from minisgl.sampling_params import SamplingParams
    from minisgl.server.schemas import CompletionRequest
    from minisgl.server.state import ServerState
    from minisgl.text.frontend import TextFrontend


@dataclass(frozen=True)
class CompletionJob:
    """Prompts that are ready for the engine."""

    text: TextFrontend
    prompts: list[CompletionPrompt]
    params: list[SamplingParams]  # one per prompt
    bad_words: list[list[int]]
    n: int
    include_stop: bool
    scores: int | None  # alternatives for each token of the prompts; None: they aren't scored

    def submit(self, generation: Generation) -> None:
        """Adds the choices of each prompt. Raises ApiError 400, 429 or 503."""
        asked = []
        for prompt, params in zip(self.prompts, self.params, strict=True):
            options = DetokenizerOptions.of(
                params,
                include_stop=self.include_stop,
                continues_prompt=True,
                begun=prompt.begun,
            )
            asked.append(AskedPrompt(prompt.ids, params, options))
        generation.submit(asked, n=self.n, bad_words=self.bad_words, score_each=True)


async def prepare_completion(
    state: ServerState, request: CompletionRequest, api_key: int | None
) -> CompletionJob:
    """What the engine is to be asked for, by the client with the key of this number. ApiError 400
    for what can't be honoured or doesn't fit, 429, 503.
    """
    checks.check_completion(request)
    text = state.frontend()
    info = state.client.info
    wanted: int | msgspec.UnsetType | None = request.max_completion_tokens
    if wanted is None:
        wanted = request.max_tokens
    if wanted is msgspec.UNSET:
        wanted = max(checks.DEFAULT_COMPLETION_TOKENS, request.min_tokens or 0)
    max_prompt = checks.room_for_prompt(wanted, info.max_model_len)
    prompts = await encode_prompts(text, request, info, max_prompt)
    scores = checks.prompt_scores(request)
    if scores is not None:
        num_tokens = sum(len(prompt.ids) for prompt in prompts)
        check_prompt_logprobs(num_tokens * (request.n or 1), scores)
    grammar = await grammar_for(text, request, api_key)
    params = [
        checks.sampling_params(
            request,
            state.sampling_defaults,
            max_tokens=checks.fit(len(prompt.ids), wanted, info.max_model_len, param="prompt"),
            logprobs=request.logprobs,
            prompt_logprobs=scores,
            grammar=grammar,
        )
        for prompt in prompts
    ]
    return CompletionJob(
        text=text,
        prompts=prompts,
        params=params,
        bad_words=await text.encode_words(params[0].bad_words),
        n=request.n or 1,
        include_stop=bool(request.include_stop_str_in_output),
        scores=scores,
    )
