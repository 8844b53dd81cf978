"""An OpenAI-compatible chat endpoint as a labeler or judge: rate limit, retries, a cache on disk, and the bill."""

import hashlib
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sparselens.embeddings.accounting import Usage
from sparselens.errors import FetchError, InputError
from sparselens.files import read_json, write_json

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # answers that may differ on another try
_LONGEST_WAIT = 60.0
_REFUSED = {401, 403}


class ChatAPI:
    """A chat model behind an OpenAI-compatible endpoint, hosted or your own (vLLM, llama.cpp, Ollama).

    Call it with prompts; it returns an answer each, in order. It serves as `labeler` and as `judge`. The texts in the
    prompts go to that endpoint.

    The key is read from the environment for each request. It is not kept, not shown, not written to the cache, not sent
    on when the server redirects, and struck out of error messages.

    Args:
        model: the name that the endpoint knows it by.
        base_url: up to and without `/chat/completions`.
        key_env: the environment variable with the key; None sends no key.
        cache: a folder. An answer is kept there under a hash of the whole prompt, the model and all settings, and is
            not paid for twice; an interrupted run goes on where it stopped.
        temperature, max_tokens: of the answers.
        settings: further fields of the request, such as `{"max_tokens": None, "max_completion_tokens": 500}`; None
            leaves a field out.
        requests_per_minute: most requests in a minute; None sets no limit.
        workers: requests under way at once.
        retries: further tries after an overload, a fault of the server or a lost connection, with growing pauses.
        timeout: seconds to wait for an answer.
        price: money for a million prompt tokens and a million completion tokens.

    Attributes:
        usage: calls, tokens and money so far.

    Raises:
        InputError: an address that is none, or one with a password in it.
    """

    def __init__(
        self,
        model: str,
        base_url: str = "https://api.openai.com/v1",
        *,
        key_env: str | None = "OPENAI_API_KEY",
        cache: str | os.PathLike | None = None,
        temperature: float = 0.0,
        max_tokens: int = 500,
        settings: Mapping[str, Any] | None = None,
        requests_per_minute: int | None = None,
        workers: int = 4,
        retries: int = 5,
        timeout: float = 120.0,
        price: tuple[float, float] | None = None,
    ):
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise InputError("base_url must be an http(s) address such as https://api.openai.com/v1, without a user or "
                             "password in it.")
        self.model, self.base_url, self.key_env = model, base_url.rstrip("/"), key_env
        self.cache = None if cache is None else Path(cache)
        body = {"temperature": temperature, "max_tokens": max_tokens, **(settings or {})}
        self.settings = {name: value for name, value in body.items() if value is not None}
        self.workers, self.retries, self.timeout, self.price = workers, retries, timeout, price
        self.usage = Usage(money=None if price is None else 0.0)
        self._pause = 0.0 if requests_per_minute is None else 60 / requests_per_minute
        self._next = 0.0
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """What tables say about who answered."""
        return f"{self.model} at {urlsplit(self.base_url).hostname}"

    def __repr__(self) -> str:
        return f"ChatAPI({self.model!r}, {self.base_url!r}, {self.usage})"

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """An answer to each prompt; the same prompt is asked once.

        Raises:
            InputError: the environment variable with the key is not set.
            FetchError: the endpoint refused, or could not be reached after all tries. Answers so far are in the cache.
        """
        unique = list(dict.fromkeys(_clean(prompt) for prompt in prompts))
        over = threading.Event()  # after a fault no further request is paid for

        def answer(prompt: str) -> str:
            try:
                return "" if over.is_set() else self._answer(prompt)
            except BaseException:
                over.set()
                raise

        pool = ThreadPoolExecutor(max(1, min(self.workers, len(unique))))
        try:
            answers = dict(zip(unique, pool.map(answer, unique), strict=True))
        finally:
            over.set()
            pool.shutdown(cancel_futures=True)
        return [answers[_clean(prompt)] for prompt in prompts]

    def _answer(self, prompt: str) -> str:
        path = self._path(prompt)
        if path is not None and path.exists():
            with self._lock:
                self.usage.cached += 1
            return str(read_json(path)["answer"])
        found = self._request({"model": self.model, "messages": [{"role": "user", "content": prompt}], **self.settings})
        try:
            answer = found["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError):
            raise FetchError(f"{self.name} answered in an unknown form: {json.dumps(found)[:200]}") from None
        used = found.get("usage") or {}
        self._account(int(used.get("prompt_tokens") or 0), int(used.get("completion_tokens") or 0))
        if path is not None:
            write_json(path, {"model": self.model, "settings": self.settings, "prompt": prompt, "answer": answer,
                              "usage": used})
        return str(answer)

    def _path(self, prompt: str) -> Path | None:
        if self.cache is None:
            return None
        said = json.dumps([self.base_url, self.model, self.settings, prompt], sort_keys=True)
        digest = hashlib.sha256(said.encode()).hexdigest()
        return self.cache / digest[:2] / f"{digest}.json"

    def _account(self, prompt_tokens: int, completion_tokens: int) -> None:
        with self._lock:
            self.usage.calls += 1
            self.usage.prompt_tokens += prompt_tokens
            self.usage.completion_tokens += completion_tokens
            if self.price is not None:
                spent = (prompt_tokens * self.price[0] + completion_tokens * self.price[1]) / 1e6
                self.usage.money = (self.usage.money or 0.0) + spent

    def _request(self, body: dict[str, Any]) -> Any:
        """Send a request, again after a fault that may pass."""
        fault = ""
        for attempt in range(self.retries + 1):
            self._wait_for_turn()
            try:
                return self._send(body)
            except urllib.error.HTTPError as error:
                fault = f"{error.code} {self._strike_out(_message(error))}"
                if error.code not in _AGAIN:
                    hint = f" Is the key in ${self.key_env} right?" if error.code in _REFUSED and self.key_env else ""
                    raise FetchError(f"{self.name} refused: {fault}{hint}") from None
                wait = _retry_after(error)
            except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
                fault, wait = self._strike_out(f"{type(error).__name__}: {error}"), None
            if attempt < self.retries:
                backoff = min(_LONGEST_WAIT, 2.0**attempt) * random.uniform(0.5, 1)
                time.sleep(backoff if wait is None else min(wait, _LONGEST_WAIT))
        kept = f"kept in {self.cache}" if self.cache else "lost, since there is no cache"
        raise FetchError(f"{self.name} gave no answer in {self.retries + 1} tries ({fault}). Answers so far are "
                         f"{kept}.")

    def _send(self, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(f"{self.base_url}/chat/completions", data=json.dumps(body).encode(),
                                         headers={"Content-Type": "application/json"}, method="POST")
        if self.key_env is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self._key()}")
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            return json.loads(answer.read())

    def _key(self) -> str:
        key = os.environ.get(self.key_env or "", "").strip()
        if not key:
            raise InputError(f"the environment variable {self.key_env} is not set: put the key for {self.base_url} "
                             "into it, or pass key_env=None for a server that needs none.")
        return key

    def _strike_out(self, text: str) -> str:
        key = os.environ.get(self.key_env or "", "").strip()
        return text.replace(key, "***") if key else text

    def _wait_for_turn(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(self._next, now)
            self._next = turn + self._pause
        if turn > now:
            time.sleep(turn - now)


def _clean(prompt: str) -> str:
    """Half of a surrogate pair cannot be sent."""
    return str(prompt).encode("utf-8", "replace").decode("utf-8")


def _message(error: urllib.error.HTTPError) -> str:
    try:
        text = error.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        text = ""
    return " ".join(text.split())[:300] or str(error.reason)


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    try:
        return max(0.0, float(error.headers.get("Retry-After", "")))
    except ValueError:
        return None
