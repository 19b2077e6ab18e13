"""Refusals and failures, with their statuses, as errors in OpenAI's form; an API's `Dialect` makes
another form of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from minisgl.engine.api import EngineBusy, EngineUnavailable
from minisgl.sampling_params import ParameterError
from minisgl.text.errors import PromptTooLong, TextQueueFull, WorkerLost

if TYPE_CHECKING:
    from minisgl.ipc.messages import Output

logger = logging.getLogger(__name__)

# Codes of refusals that end with the backlog: Guard says in Retry-After when that may be.
BACKLOG_CODES = frozenset(("queue_full", "overloaded"))
RETRY_AFTER_UNAVAILABLE_S = 5  # loading, restarting or draining
# A text may have more tokens than the context where it is cut afterwards, or its tokens are
# counted. One that surely has more than so many is refused: each takes up to 350 bytes meanwhile.
MAX_TOKENIZED = 2**20


class ApiError(Exception):
    """A refusal with its status. The message is written for the client; nothing else of the
    exception leaves here.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        prompt_tokens: tuple[int, int] | None = None,
    ) -> None:
        """`prompt_tokens`: of a prompt that is too long, how many it has at least, and how many it
        may have.
        """
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        self.prompt_tokens = prompt_tokens

    def body(self) -> bytes:
        """{"error": {"message", "type", "param", "code"}}"""
        return msgspec.json.encode(
            {
                "error": {
                    "message": self.message,
                    "type": self.type,
                    "param": self.param,
                    "code": self.code,
                }
            }
        )

    def event(self) -> bytes:
        """The same as a server-sent event, for a stream that has begun."""
        return b"data: " + self.body() + b"\n\n"


def bad_request(message: str, *, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: a request that no repetition makes acceptable. `param` is the field at fault."""
    return ApiError(400, message, param=param, code=code)


def missing(place: str) -> ApiError:
    """400 for a parameter that must be there, with its place in the request."""
    return bad_request(
        f"Missing required parameter: {place}", param=place, code="missing_required_parameter"
    )


def unsupported(param: str, message: str) -> ApiError:
    """400: a value that OpenAI's or vLLM's API knows and this server can't honour."""
    return ApiError(400, message, param=param, code="unsupported_parameter")


def too_long(num_prompt: int, max_model_len: int, *, param: str) -> ApiError:
    """400: the prompt leaves no room for an answer in the context of `max_model_len` tokens.
    `param` is where the prompt stands.
    """
    return ApiError(
        400,
        f"This model's maximum context length is {max_model_len} tokens, but the prompt has "
        f"{num_prompt} tokens, which leaves no room for an answer.",
        param=param,
        code="context_length_exceeded",
        prompt_tokens=(num_prompt, max_model_len),
    )


def surely_too_long(prompt: PromptTooLong, param: str = "prompt") -> ApiError:
    """The prompt doesn't fit the context, or is too long to be cut or counted. It was not
    tokenized.
    """
    limit = f"This model's maximum context length is {prompt.max_tokens} tokens"
    if prompt.max_tokens == MAX_TOKENIZED:
        limit = f"Texts of up to {MAX_TOKENIZED} tokens are tokenized"
    return ApiError(
        400,
        f"{limit}, but the prompt has at least {prompt.at_least} tokens.",
        param=param,
        code="context_length_exceeded",
        prompt_tokens=(prompt.at_least, prompt.max_tokens),
    )


def too_large(message: str) -> ApiError:
    """413: a body of too many bytes or values."""
    return ApiError(413, message, code="request_too_large")


def unauthorized(header: bytes | None = None) -> ApiError:
    """401: the API key is missing or another one. `header`: one that may have it, too."""
    other = "" if header is None else f", or as '{header.decode()}: KEY'"
    return ApiError(
        401,
        f"Incorrect or missing API key. Send it as 'Authorization: Bearer KEY'{other}.",
        type="authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def model_not_found(name: str, served: str) -> ApiError:
    """404: the request names a model that isn't served; `served` is."""
    shown = name if len(name) <= 200 else name[:200] + "..."
    return ApiError(
        404,
        f"The model {shown!r} does not exist. This server has {served!r}.",
        param="model",
        code="model_not_found",
    )


def replica_unknown(sentence: str) -> ApiError:
    """404: no replica has this number."""
    return ApiError(404, f"{sentence[0].upper()}{sentence[1:]}.", code="replica_not_found")


def replica_refused(sentence: str) -> ApiError:
    """409: replicas can't be changed in this way now."""
    return ApiError(409, f"{sentence[0].upper()}{sentence[1:]}.", code="replica_refused")


def adapter_refused(sentence: str) -> ApiError:
    """400: an adapter can't be loaded."""
    return ApiError(400, f"{sentence[0].upper()}{sentence[1:]}.", code="adapter_refused")


def adapter_unknown(sentence: str) -> ApiError:
    """404: there is no adapter of this name."""
    return ApiError(404, f"{sentence[0].upper()}{sentence[1:]}.", code="adapter_not_found")


def busy(sentence: str = "") -> ApiError:
    """429, when as many requests or prompt tokens are live as may be; `sentence` says which."""
    return ApiError(
        429,
        f"The request queue is full: {sentence} Try again later."
        if sentence
        else "The request queue is full. Try again later.",
        type="rate_limit_error",
        code="queue_full",
    )


def texts_waiting() -> ApiError:
    """429, when the texts of other requests would be in front of this one's for too long."""
    return ApiError(
        429,
        "Other long prompts are waiting to be read. Try again later.",
        type="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": str(RETRY_AFTER_UNAVAILABLE_S)},
    )


def overloaded(limit: int) -> ApiError:
    """503, when the bodies that are arriving or wait to be tokenized have `limit` bytes together
    (--max-all-bodies-bytes).
    """
    return ApiError(
        503,
        "The server has as many bytes of request bodies to read as it may "
        f"(limit {limit}). Try again later.",
        type="service_unavailable",
        code="overloaded",
    )


_UNAVAILABLE = {
    "starting": "The model is still loading. Try again later.",
    "restarting": "The engine is restarting. Try again later.",
    "draining": "The server is shutting down.",
    "failed": "The engine has failed and could not be restarted.",
}


def unavailable(state: str) -> ApiError:
    """503, when the client's `state` isn't "ready", or the tokenizer isn't loaded."""
    return ApiError(
        503,
        _UNAVAILABLE.get(state, "The server is not ready. Try again later."),
        type="service_unavailable",
        code="not_ready" if state == "starting" else state,
        headers={"Retry-After": str(RETRY_AFTER_UNAVAILABLE_S)},
    )


def refused(error: EngineBusy | EngineUnavailable | ParameterError) -> ApiError:
    """From what EngineApi.submit() raises."""
    if isinstance(error, EngineBusy):
        return busy(str(error))
    if isinstance(error, EngineUnavailable):
        return unavailable(error.state)
    return bad_request(str(error), param=error.parameter)


def engine_error(output: Output) -> ApiError:
    """From an output that finished with "error" or "abort". The engine's sentences about a request
    are meant for the client; what it says about itself is not.
    """
    if output.finish == "abort" or output.error_code == "shutting_down":
        return unavailable("draining")  # a client's own abort is answered to nobody
    if output.error_code == "replaced":
        return ApiError(
            503,
            "The model was replaced while it worked on this request. Try again.",
            type="server_error",
            code="replaced",
        )
    if output.error_code == "invalid_request":
        return bad_request(output.error)
    if output.error_code == "too_long":
        return bad_request(output.error, code="context_length_exceeded")
    if output.error_code == "queue_full":
        return busy()
    return ApiError(
        503,
        "The engine failed while working on this request. Try again later.",
        type="server_error",
        code="engine_failure",
        headers={"Retry-After": str(RETRY_AFTER_UNAVAILABLE_S)},
    )


def from_exception(error: Exception, request_id: str) -> ApiError:
    """The answer to any exception. One that nobody foresaw is logged, and its text stays here."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptTooLong):
        return surely_too_long(error)
    if isinstance(error, TextQueueFull):
        return texts_waiting()
    if isinstance(error, WorkerLost):
        return ApiError(
            503,
            "A tokenizer process failed while working on this request. Try again later.",
            type="server_error",
            code="tokenizer_failure",
            headers={"Retry-After": str(RETRY_AFTER_UNAVAILABLE_S)},
        )
    logger.error("request %s failed", request_id, exc_info=error)
    return ApiError(
        500,
        f"The server had an internal error. Its log has it under the request id {request_id}.",
        type="server_error",
        code="internal_error",
    )
