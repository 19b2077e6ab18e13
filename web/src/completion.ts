// One streamed chat completion: what is asked, and its parts as they come.
import { ApiError, call, ConnectionLost } from "./api";
import { readEvents } from "./events";

interface CallPart {
  index: number;
  id?: string;
  function?: { name?: string; arguments?: string };
}

export interface TokenLogprob {
  token: string;
  logprob: number;
  top_logprobs: { token: string; logprob: number }[];
}

interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_tokens_details?: { cached_tokens: number };
}

interface Chunk {
  error?: { message: string; type: string };
  usage?: Usage | null;
  choices?: {
    delta: { content?: string | null; reasoning_content?: string | null; tool_calls?: CallPart[] };
    finish_reason: string | null;
    logprobs?: { content: TokenLogprob[] | null } | null;
  }[];
}

export interface Part {
  content: string;
  reasoning: string;
  calls: CallPart[];
  finish: string | null;
  logprobs: TokenLogprob[];
  usage: Usage | null;
}

/** The parts of the answer to `body`, to the end. Throws ApiError for a refusal, ConnectionLost where the answer
 * broke off, and AbortError. */
export async function* complete(body: Record<string, unknown>, signal: AbortSignal): AsyncGenerator<Part> {
  const asked = { ...body, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
  const response = await call("v1/chat/completions", { body: asked, signal });
  if (!response.body) throw new ConnectionLost();
  try {
    for await (const { data } of readEvents(response.body)) {
      if (data === "[DONE]") return;
      yield readChunk(JSON.parse(data) as Chunk);
    }
  } catch (error) {
    if (signal.aborted || error instanceof ApiError) throw error;
    throw new ConnectionLost();
  }
  signal.throwIfAborted();
  throw new ConnectionLost();
}

function readChunk(chunk: Chunk): Part {
  if (chunk.error) {
    const passes = chunk.error.type === "server_error" || chunk.error.type === "service_unavailable";
    throw new ApiError(passes ? 503 : 400, chunk.error.message);
  }
  const choice = chunk.choices?.[0];
  return {
    content: choice?.delta.content ?? "",
    reasoning: choice?.delta.reasoning_content ?? "",
    calls: choice?.delta.tool_calls ?? [],
    finish: choice?.finish_reason ?? null,
    logprobs: choice?.logprobs?.content ?? [],
    usage: chunk.usage ?? null,
  };
}
