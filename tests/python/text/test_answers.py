"""Answers that come back in conversations: prompts have their own ids, or the tokenizer's."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minisgl.text.answers import (
    MAX_SAME,
    NUM_OVERHEAD_BYTES,
    AnswerMemory,
    Conversations,
    Owner,
    conversations,
    find_runs,
    join_runs,
    last_words,
    pieces_between,
    turns_of,
)
from minisgl.text.frontend import TextFrontend
from minisgl.tokenizer import (
    DetokenizerOptions,
    IncrementalDetokenizer,
    Tokenizer,
    load_tokenizer,
)
from tests.python.tokenizer.vocabularies import (
    sentencepiece_fields,
    sentencepiece_model,
    write_gguf,
)

NOBODY: Owner = (None, None)
Render = Callable[..., str]
Message = dict[str, Any]

STRIPPING = (
    "{%- for m in messages %}"
    "{{- '<|im_start|>' + m.role + '\\n' }}"
    "{%- set words = m.content.split('</think>')[-1] if m.role == 'assistant' else m.content %}"
    "{{- words | trim }}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' + opening }}{% endif %}"
)


def plain(messages: list[Message], *, end: str = "<|im_end|>\n") -> str:
    """A prompt of ChatML with the contents as they are."""
    turns = [f"<|im_start|>{one['role']}\n{one['content']}{end}" for one in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


def stripping(messages: list[Message]) -> str:
    """One without thoughts and without spaces around contents, as STRIPPING makes it."""
    return plain([{**one, "content": last_words(one["content"])} for one in messages])


@pytest.fixture(scope="module")
def tokenizer(default_gguf: Path) -> Tokenizer:
    return load_tokenizer(str(default_gguf))


class Conversation:
    """A client and a server that remembers: what each prompt is made of."""

    def __init__(
        self, tokenizer: Tokenizer, render: Render, memory: AnswerMemory | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.memory = AnswerMemory(2**20) if memory is None else memory
        self.render = render
        self.messages: list[Message] = []
        self.ids: list[int] = []  # the last prompt's, and the answer's

    def ask(self, text: str, owner: Owner = NOBODY) -> list[int]:
        """The prompt's ids."""
        self.messages.append({"role": "user", "content": text})
        self.prompt = self.render(self.messages)
        self.owner = owner
        self.ids = encode(self.tokenizer, self.memory, owner, self.messages, self.prompt)
        return self.ids

    def answer(self, ids: list[int], text: str | None = None) -> None:
        """The model's answer, and what the client makes of its text, where that is another."""
        detokenizer = IncrementalDetokenizer(self.tokenizer, DetokenizerOptions())
        shown = detokenizer.push(ids) + detokenizer.finish()
        self.remember(ids, shown)
        content = shown if text is None else text
        self.messages.append({"role": "assistant", "content": content})
        self.ids = self.ids + ids

    def remember(self, ids: list[int], shown: str) -> None:
        """What the server does with the answer to the last prompt."""
        key = conversations(self.owner, self.messages).whole
        self.memory.remember(key, turns_of(self.prompt), ids, shown)


def encode(
    tokenizer: Tokenizer, memory: AnswerMemory, owner: Owner, messages: list[Message], prompt: str
) -> list[int]:
    runs = find_runs(tokenizer, prompt, memory.find(conversations(owner, messages)))
    pieces = [
        tokenizer.encode(piece, add_special_tokens=False) if piece else []
        for piece in pieces_between(prompt, runs)
    ]
    joined = join_runs(tokenizer, prompt, runs, pieces)
    return tokenizer.encode(prompt, add_special_tokens=False) if joined is None else joined


def cut(tokenizer: Tokenizer, text: str, seed: int = 0) -> list[int]:
    """Ids of a text as a model may have drawn them: not those that the tokenizer has for it."""
    rng = random.Random(seed)
    ids: list[int] = []
    while text:
        size = rng.randint(1, 4)
        ids += tokenizer.encode(text[:size], add_special_tokens=False)
        text = text[size:]
    return ids


TEXTS = [
    "The capital of France is Paris.",
    "Größe: 3 µm 😀👍🏽, naïve",
    "def f(x):\n    return x ** 2\n\n\nprint(f(3))",
    "  leading and trailing  \n\n",
    "a",
    "OK",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12",
    "日本語のテキスト。",
    '{"name": "x", "arguments": {"a": [1, 2]}}',
]


@pytest.mark.parametrize("seed", range(20))
def test_a_prompt_begins_with_all_that_was_computed_before(tokenizer: Tokenizer, seed: int) -> None:
    """Where the template leaves contents as they are: prompt and answer are there, id by id."""
    rng = random.Random(seed)
    chat = Conversation(tokenizer, plain)
    for turn in range(6):
        before = chat.ids
        ids = chat.ask(rng.choice(TEXTS))
        assert ids[: len(before)] == before
        assert tokenizer.decode(ids, skip_special_tokens=False) == chat.prompt
        chat.answer(cut(tokenizer, rng.choice(TEXTS), seed + turn))
    assert chat.ids != tokenizer.encode(
        tokenizer.decode(chat.ids, skip_special_tokens=False), add_special_tokens=False
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_thought_that_the_template_strips_stays_out(tokenizer: Tokenizer, seed: int) -> None:
    rng = random.Random(seed)
    chat = Conversation(tokenizer, stripping)
    kept: list[int] = []
    for turn in range(5):
        ids = chat.ask(rng.choice(TEXTS))
        assert tokenizer.decode(ids, skip_special_tokens=False) == chat.prompt
        assert contains(ids, kept)
        words = cut(tokenizer, rng.choice(TEXTS).strip(), seed + turn)
        thought = cut(tokenizer, "<think>\n" + rng.choice(TEXTS) + "\n</think>\n\n", turn)
        space = cut(tokenizer, rng.choice(["", "\n", "  "]))
        kept = words
        chat.answer(thought + words + space)


def contains(ids: list[int], part: list[int]) -> bool:
    return any(ids[at : at + len(part)] == part for at in range(len(ids) - len(part) + 1))


@pytest.mark.parametrize("opening", ["<think>\n", "<think>\n\n</think>\n\n"])
def test_a_thought_that_the_template_opens_is_no_part_of_the_place(
    tokenizer: Tokenizer, opening: str
) -> None:
    """Prompts end with it, and histories don't have it."""
    chat = Conversation(tokenizer, lambda messages: stripping(messages) + opening)
    chat.ask("hi")
    words = cut(tokenizer, "Hello there")
    chat.answer(cut(tokenizer, "I think.\n</think>\n\n") + words)
    assert contains(chat.ask("and?"), words)


def test_a_client_may_leave_the_thought_out_and_strip_spaces(tokenizer: Tokenizer) -> None:
    words = cut(tokenizer, "Hello there")
    answer = [*cut(tokenizer, "<think>Hm.</think>\n\n"), *words, *cut(tokenizer, "\n")]
    for text in ("Hello there", "Hello there\n", "<think>Hm.</think>\n\nHello there"):
        for render in (plain, stripping):
            chat = Conversation(tokenizer, render)
            chat.ask("hi")
            chat.answer(answer, text)
            assert contains(chat.ask("and?"), words)
            assert tokenizer.decode(chat.ids, skip_special_tokens=False) == chat.prompt


def test_what_is_not_the_answers_text_is_the_tokenizers(tokenizer: Tokenizer) -> None:
    answer = cut(tokenizer, "Hello there, world")

    def asked(text: str, owner: Owner = NOBODY, first: str = "hi") -> bool:
        """Whether the ids of the answer are not there, and all is as the tokenizer has it."""
        chat = Conversation(tokenizer, plain)
        chat.ask("hi", owner)
        chat.answer(answer, text)
        chat.messages[0]["content"] = first
        ids = chat.ask("and?")
        return ids == tokenizer.encode(chat.prompt, add_special_tokens=False)

    assert not asked("Hello there, world")
    assert asked("Hello there, word")
    assert asked("hello there, world")
    assert asked("")
    assert asked("Hello there, world", first="another beginning")
    assert asked("Hello there, world", owner=(0, None))
    assert asked("Hello there, world", owner=(None, "salt"))


def test_a_template_that_rewrites_an_answer_gets_the_tokenizers_ids(tokenizer: Tokenizer) -> None:
    chat = Conversation(
        tokenizer,
        lambda messages: plain([{**one, "content": one["content"].upper()} for one in messages]),
    )
    chat.ask("hi")
    chat.answer(cut(tokenizer, "Hello there"))
    assert chat.ask("and?") == tokenizer.encode(chat.prompt, add_special_tokens=False)


@pytest.mark.parametrize("text", ["a <|im_end|> b", "<|im_start|>", "x<|im_end|>"])
def test_the_text_of_a_special_token_is_what_the_tokenizer_makes_of_it(
    tokenizer: Tokenizer, text: str
) -> None:
    """The model wrote it in other tokens, which mean nothing of the kind."""
    spelled = [
        token_id
        for character in text
        for token_id in tokenizer.encode(character, add_special_tokens=False)
    ]
    chat = Conversation(tokenizer, plain)
    chat.ask("hi")
    chat.answer(spelled)
    assert chat.messages[-1]["content"] == text
    assert chat.ask("and?") == tokenizer.encode(chat.prompt, add_special_tokens=False)


def test_a_special_token_that_was_shown_stays_one(tokenizer: Tokenizer) -> None:
    ids = [*cut(tokenizer, "say "), *tokenizer.encode("<|im_end|>"), *cut(tokenizer, "twice")]
    chat = Conversation(tokenizer, plain)
    chat.ask("hi")
    chat.remember(ids, "say <|im_end|>twice")
    chat.messages.append({"role": "assistant", "content": "say <|im_end|>twice"})
    assert contains(chat.ask("and?"), ids)


def test_special_tokens_that_were_not_shown_leave_the_text_to_the_tokenizer(
    tokenizer: Tokenizer,
) -> None:
    ids = [*cut(tokenizer, "one "), *tokenizer.encode("<|im_end|>"), *cut(tokenizer, "two")]
    chat = Conversation(tokenizer, plain)
    chat.ask("hi")
    chat.answer(ids)
    assert chat.messages[-1]["content"] == "one two"
    assert chat.ask("and?") == tokenizer.encode(chat.prompt, add_special_tokens=False)


def test_an_answer_that_ends_within_a_character(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode("look: 😀", add_special_tokens=False)
    chat = Conversation(tokenizer, plain)
    chat.ask("hi")
    chat.answer(whole[:-1], "look:")
    ids = chat.ask("and?")
    assert tokenizer.decode(ids, skip_special_tokens=False) == chat.prompt


def broken(tokenizer: Tokenizer, rng: random.Random) -> list[int]:
    """Ids whose bytes are not UTF-8, and which the tokenizer has for no text: characters have lost
    some of their bytes.
    """
    pieces = [cut(tokenizer, text, rng.randrange(100)) for text in ("say ", " é, ", "日本 ", "!")]
    face = tokenizer.encode("😀", add_special_tokens=False)
    assert len(face) > 1
    pieces += [face[:1], face[1:], face, face[:-1] * 2]
    return [token_id for piece in rng.sample(pieces, len(pieces)) for token_id in piece]


@pytest.mark.parametrize("seed", range(20))
def test_bytes_that_are_no_text_come_back_as_they_were(tokenizer: Tokenizer, seed: int) -> None:
    """The client was shown U+FFFD, and says so."""
    rng = random.Random(seed)
    start, end = (cut(tokenizer, text) for text in ("well ", " done"))
    for render in (plain, stripping):
        chat = Conversation(tokenizer, render)
        for _ in range(4):
            before = chat.ids
            chat.ask("and?")
            if render is plain:
                assert chat.ids[: len(before)] == before
            assert tokenizer.decode(chat.ids, skip_special_tokens=False) == chat.prompt
            thought = [] if render is plain else cut(tokenizer, "<think>Hm.</think>\n")
            words = [*start, *broken(tokenizer, rng), *end]
            chat.answer([*thought, *words])
            assert "\ufffd" in chat.messages[-1]["content"]
            assert contains(chat.ask("and?"), words)
            chat.messages.pop()


def test_bytes_that_are_no_text_at_an_answers_ends(tokenizer: Tokenizer) -> None:
    face = tokenizer.encode("😀", add_special_tokens=False)
    for answer in ([*face[1:], *cut(tokenizer, " is it")], [*cut(tokenizer, "it is "), *face[1:]]):
        chat = Conversation(tokenizer, plain)
        chat.ask("hi")
        chat.answer(answer)
        assert contains(chat.ask("and?"), answer)
    chat = Conversation(tokenizer, plain)
    chat.ask("hi")
    chat.answer([*face[1:], *cut(tokenizer, " and "), *face[:-1]])  # its last part isn't shown
    assert contains(chat.ask("and?"), [*face[1:], *cut(tokenizer, " and ")])
    assert tokenizer.decode(chat.ids, skip_special_tokens=False) == chat.prompt


def test_a_space_that_is_one_token_with_a_part_of_a_character(tokenizer: Tokenizer) -> None:
    answer = tokenizer.encode(" 😀 is a face", add_special_tokens=False)
    first = tokenizer.token_bytes(answer[0])
    assert first.startswith(b" ")
    assert len(first) in (2, 3, 4)  # the template strips the space
    chat = Conversation(tokenizer, stripping)
    chat.ask("hi")
    chat.answer([*answer, *cut(tokenizer, "abcdefgh")])
    assert contains(chat.ask("and?"), cut(tokenizer, "abcdefgh"))
    assert tokenizer.decode(chat.ids, skip_special_tokens=False) == chat.prompt


def test_a_stop_string_is_cut_between_tokens(tokenizer: Tokenizer) -> None:
    words = cut(tokenizer, "Hello there", 3)
    chat = Conversation(tokenizer, plain)
    chat.ask("hi")
    chat.remember([*words, *cut(tokenizer, "STOP!")], "Hello there")
    chat.messages.append({"role": "assistant", "content": "Hello there"})
    assert contains(chat.ask("and?"), words)
    assert tokenizer.decode(chat.ids, skip_special_tokens=False) == chat.prompt


def test_the_same_text_in_many_conversations(tokenizer: Tokenizer) -> None:
    """Each has its own ids."""
    memory = AnswerMemory(2**20)
    chats = [Conversation(tokenizer, plain, memory) for _ in range(2 * MAX_SAME)]
    answers = [cut(tokenizer, "Hello there, world", seed) for seed in range(len(chats))]
    for number, (chat, answer) in enumerate(zip(chats, answers, strict=True)):
        chat.ask("x" * number)
        chat.answer(answer)
    for chat, answer in zip(chats, answers, strict=True):
        assert contains(chat.ask("and?"), answer)


def test_many_answers_to_one_conversation(tokenizer: Tokenizer) -> None:
    """Whichever the client goes on with is known, of equal texts the latest, among MAX_SAME."""
    texts = [f"Hello there, world {number}" for number in range(MAX_SAME + 1)]
    answers = [cut(tokenizer, text, seed) for seed, text in enumerate(texts)]
    again = cut(tokenizer, texts[5], 100)
    assert again != answers[5]
    chats = [Conversation(tokenizer, plain)]
    for _ in texts[1:]:
        chats.append(Conversation(tokenizer, plain, chats[0].memory))
    for chat, answer in zip(chats, answers, strict=True):
        chat.ask("hi")
        chat.answer(answer)
    chats[0].messages.pop()
    chats[0].ask("hi")
    chats[0].messages.pop()
    chats[5].messages.pop()
    chats[5].answer(again)
    answers[5] = again
    found = [contains(chat.ask("and?"), one) for chat, one in zip(chats, answers, strict=True)]
    assert found == [False] + MAX_SAME * [True]


def calling(messages: list[Message]) -> str:
    """A prompt whose template writes thoughts and calls from their own fields."""

    def content(message: Message) -> str:
        thought = message.get("reasoning_content")
        said = f"<think>\n{thought}\n</think>\n\n" if thought else ""
        said += message.get("content") or ""
        for call in message.get("tool_calls", []):
            function = call["function"]
            said += f"<call>{function['name']} {function['arguments']}</call>"
        return said

    return plain([{"role": one["role"], "content": content(one)} for one in messages])


@pytest.mark.parametrize("arguments", ['{"a": 1}', '{"a":1}'])
@pytest.mark.parametrize("thought", ["Hm, well.", ""])
@pytest.mark.parametrize("content", ["Let me see. ", "", None])
def test_calls_and_thoughts_come_back_from_their_fields(
    tokenizer: Tokenizer, arguments: str, thought: str, content: str | None
) -> None:
    """Where the client's JSON is another, the thought before it is still what was generated."""
    chat = Conversation(tokenizer, calling)
    chat.ask("hi")
    said = cut(tokenizer, f"<think>\n{thought}\n</think>\n\n") if thought else []
    called = cut(tokenizer, f'{content or ""}<call>look {{"a": 1}}</call>')
    chat.remember([*said, *called], tokenizer.decode([*said, *called]))
    function = {"name": "look", "arguments": arguments}
    message = {"content": content, "reasoning_content": thought}
    calls = [{"type": "function", "function": function}]
    chat.messages += [
        {"role": "assistant", "tool_calls": calls, **message},
        {"role": "tool", "content": "7"},
    ]
    ids = chat.ask("and?")
    assert tokenizer.decode(ids, skip_special_tokens=False) == chat.prompt
    if arguments == '{"a": 1}':
        assert contains(ids, [*said, *called])
    elif thought:
        assert contains(ids, said)
        assert not contains(ids, called)
    else:
        assert ids == tokenizer.encode(chat.prompt, add_special_tokens=False)


def test_an_answer_whose_end_was_changed_is_the_tokenizers(tokenizer: Tokenizer) -> None:
    chat = Conversation(tokenizer, plain)
    chat.ask("hi")
    chat.answer(cut(tokenizer, "Hello there, world"), "Hello there, you")
    assert chat.ask("and?") == tokenizer.encode(chat.prompt, add_special_tokens=False)


def test_answers_that_overlap_in_a_prompt(tokenizer: Tokenizer) -> None:
    memory = AnswerMemory(2**20)
    messages = [{"role": "assistant", "content": text} for text in ("one two", "two three")]
    keys = conversations(NOBODY, messages)
    for key, prompt, answer in zip(
        keys.answered, ("Q:", "Q:one"), ("one two", " two three"), strict=True
    ):
        memory.remember(key, turns_of(prompt), tokenizer.encode(answer), answer)
    prompt = "Q:one two three"
    runs = find_runs(tokenizer, prompt, memory.find(keys))
    assert [prompt[run.begin : run.end] for run in runs] == ["one two"]
    pieces = [tokenizer.encode(piece) for piece in pieces_between(prompt, runs)]
    assert join_runs(tokenizer, prompt, runs, pieces) is not None


def test_those_used_longest_ago_are_forgotten() -> None:
    room = 4 * (NUM_OVERHEAD_BYTES + 4 * 10 + 1)
    memory = AnswerMemory(room)

    def remember(ids: list[int], text: str) -> None:
        memory.remember(text.encode(), turns_of("prompt"), ids, text)

    def known(text: str) -> bool:
        return bool(memory.find(Conversations([text.encode()], b"")))

    for text in "abcd":
        remember([1] * 10, text)
    assert memory.num_bytes == room
    assert known("a")
    remember([1] * 10, "e")
    assert [text for text in "abcde" if known(text)] == ["a", "c", "d", "e"]
    remember([2] * 10, "e")  # again
    assert [text for text in "abcde" if known(text)] == ["a", "c", "d", "e"]
    remember([1] * 1000, "too large")
    assert not known("too large")
    assert memory.num_bytes <= room
    for text in ("", " \n", "a thought</think> "):
        remember([1], text)
        assert not known(text)
    memory.remember(b"no place", (), [1], "no place")
    assert not known("no place")


def test_a_vocabulary_that_puts_a_space_before_a_text(tmp_path: Path) -> None:
    """A piece of a prompt is not what it is in the whole, and so all of it is the tokenizer's."""
    pytest.importorskip("sentencepiece")
    fields = sentencepiece_fields(sentencepiece_model(tmp_path))
    tokenizer = load_tokenizer(str(write_gguf(tmp_path / "model.gguf", fields)))
    chat = Conversation(tokenizer, lambda messages: plain(messages, end=" "))
    for text in ("the quick", "brown fox"):
        assert chat.ask(text) == tokenizer.encode(chat.prompt, add_special_tokens=False)
        found = chat.memory.find(conversations(NOBODY, chat.messages))
        assert len(found) == len(chat.messages) // 2
        answer = tokenizer.encode("fox jumps", add_special_tokens=False)
        chat.answer([*answer[:1], *tokenizer.encode("the lazy dog", add_special_tokens=False)])


@pytest.mark.parametrize("num_tokenizer", [0, 2])
async def test_the_frontend_puts_them_in(
    default_gguf: Path, tmp_path: Path, num_tokenizer: int
) -> None:
    """In this process and with tokenizer processes, for short conversations and for long ones."""
    template = tmp_path / "chat.jinja"
    template.write_text(STRIPPING)
    text = await TextFrontend.start(
        str(default_gguf),
        chat_template=str(template),
        num_tokenizer=num_tokenizer,
        answer_memory_bytes=2**20,
    )
    tokenizer = text.tokenizer
    variables = {"opening": "<think>\n"}
    options = DetokenizerOptions()
    try:
        for content in ("hi", "long " * 5000):
            messages = [{"role": "user", "content": content}]
            prompt = await text.encode_chat(messages, variables, owner=NOBODY)
            words = cut(tokenizer, "Hello there, world", len(content))
            answer = [*cut(tokenizer, "Hm.\n</think>\n\n"), *words]
            text.remember(prompt, answer, options)
            messages += [
                {"role": "assistant", "content": tokenizer.decode(answer)},
                {"role": "user", "content": "and?"},
            ]
            ids = (await text.encode_chat(messages, variables, owner=NOBODY)).ids
            assert contains(ids, words)
            shown = tokenizer.decode(ids, skip_special_tokens=False)
            assert shown == await text.render_chat(messages, variables)
            canonical = tokenizer.encode(shown, add_special_tokens=False)
            assert ids != canonical
            for owner in (None, (1, None), (None, "salt")):
                asked = await text.encode_chat(messages, variables, owner=owner)
                assert asked.ids == canonical
    finally:
        await text.close()
