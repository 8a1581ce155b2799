"""What a server is told when it starts: names, keys and limits."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of build_app().

    names             that the model is served under; the first is the one that answers carry. Empty: its own
    any_model         whether requests may name any other model as well
    keys              of the clients, one of which every request but /health must carry; empty: none is needed
    hosts             names that requests may call this server by; empty: any. Foreign names in a browser's
                      request are how pages reach a server that only listens on this machine (DNS rebinding)
    origins           of pages that may call it from a browser, such as "https://chat.example.org"; "*": any
    max_tokens        that a request may ask for; None: as many as the context has
    default_tokens    that it gets when it does not say; None: as max_tokens
    max_n             answers for one prompt
    max_prompts       prompts in one request
    max_inputs        texts in one request for embeddings, as OpenAI has it
    max_body          bytes of a request
    max_logprobs      alternatives for a token
    max_stop          stop texts or tokens, each of at most max_stop_length characters
    max_bias          tokens with a bias
    max_tools         functions in a request
    max_grammar       bytes of a schema, an expression or a grammar
    max_waiting       requests that may wait; more get 429
    max_wait          seconds that a request may be expected to wait for its first token; longer: 429
    timeout           seconds that a request may take; None: no limit. Its field `timeout` may say less
    slow              seconds without progress after which a client that does not read is dropped, and within
                      which the body of a request has to come
    stuck             seconds after which a step that is under way is one that hangs
    drain             seconds that what runs may take when the server is told to end
    ping              seconds of silence in a stream after which a comment is sent, so that nobody hangs up
    trust_messages    whether texts of messages may hold control tokens
    """

    names: tuple[str, ...] = ()
    any_model: bool = False
    keys: frozenset[str] = field(default=frozenset(), repr=False)
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    max_tokens: int | None = None
    default_tokens: int | None = None
    max_n: int = 16
    max_prompts: int = 256
    max_inputs: int = 2048
    max_body: int = 8 << 20
    max_logprobs: int = 20
    max_stop: int = 16
    max_stop_length: int = 256
    max_bias: int = 1024
    max_tools: int = 128
    max_grammar: int = 64 << 10
    max_waiting: int = 128
    max_wait: float = 30.0
    timeout: float | None = None
    slow: float = 60.0
    stuck: float = 60.0
    drain: float = 30.0
    ping: float = 15.0
    trust_messages: bool = False
