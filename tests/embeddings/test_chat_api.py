"""`ChatAPI` against a server on this machine: order, cache, retries, rate, money, and a key that stays secret."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sparselens.embeddings import ChatAPI
from sparselens.errors import FetchError, InputError

KEY = "sk-very-secret-123"


class Server(ThreadingHTTPServer):
    """Answers each prompt with its letters in upper case; `script` holds what to do instead, request by request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.times, self.script, self.lock = [], [], [], threading.Lock()

    def handle_error(self, request, client_address):
        """A client that has gone away is no fault."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), body))
            self.server.times.append(time.monotonic())
            step = self.server.script.pop(0) if self.server.script else None
        prompt = body["messages"][0]["content"]
        answer = {"choices": [{"message": {"content": prompt.upper()}}],
                  "usage": {"prompt_tokens": len(prompt), "completion_tokens": 2}}
        status, headers, text = step(self) if step else (200, {}, json.dumps(answer))
        if status is None:
            self.connection.close()
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers), None))
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_):
        pass


def reply(status, text="", headers=None):
    return lambda handler: (status, headers or {}, text)


@pytest.fixture
def server():
    made = Server()
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_sleep(monkeypatch):
    waits = []
    monkeypatch.setattr("sparselens.embeddings.chat_api.time.sleep", waits.append)
    return waits


def api(server, **settings):
    return ChatAPI("tiny-1", f"http://127.0.0.1:{server.server_port}/v1", **settings)


def test_answers_come_in_order_and_each_prompt_is_asked_once(server):
    ask = api(server, price=(2.0, 10.0))
    prompts = [f"prompt {i % 7}" for i in range(20)]
    assert ask(prompts) == [p.upper() for p in prompts]
    assert len(server.requests) == 7
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body["model"] == "tiny-1"
    assert (body["temperature"], body["max_tokens"]) == (0.0, 500)
    assert (ask.usage.calls, ask.usage.prompt_tokens, ask.usage.completion_tokens) == (7, 7 * 8, 14)
    assert ask.usage.money == pytest.approx((56 * 2 + 14 * 10) / 1e6)
    assert ask([]) == []


def test_settings_join_the_request(server):
    api(server, settings={"max_tokens": None, "max_completion_tokens": 9})(["x"])
    body = server.requests[0][2]
    assert "max_tokens" not in body
    assert body["max_completion_tokens"] == 9


def test_the_cache_knows_the_whole_prompt_the_model_and_the_settings(server, tmp_path):
    long = "x" * 300
    prompts = [f"{long}A{long}", f"{long}B{long}"]  # alike at both ends
    assert api(server, cache=tmp_path)(prompts) == [p.upper() for p in prompts]
    again = api(server, cache=tmp_path)
    assert again(prompts) == [p.upper() for p in prompts]
    assert len(server.requests) == 2
    assert (again.usage.calls, again.usage.cached, again.usage.prompt_tokens) == (0, 2, 0)
    api(server, cache=tmp_path, temperature=0.5)(prompts[:1])
    other = ChatAPI("tiny-2", f"http://127.0.0.1:{server.server_port}/v1", cache=tmp_path)
    other(prompts[:1])
    assert len(server.requests) == 4
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_interrupted_run_goes_on_from_the_cache(server, tmp_path, no_sleep):
    server.script = [None, None, reply(400, "no")]
    with pytest.raises(FetchError):
        api(server, cache=tmp_path, workers=1)(["a", "b", "c", "d"])
    assert len(server.requests) == 3  # nothing was asked after the fault
    assert api(server, cache=tmp_path, workers=1)(["a", "b", "c", "d"]) == ["A", "B", "C", "D"]
    assert len(server.requests) == 5


def test_faults_that_pass_are_tried_again(server, no_sleep):
    server.script = [reply(429, headers={"Retry-After": "7"}), reply(503), reply(200, "not json"), reply(None)]
    assert api(server, workers=1)(["a"]) == ["A"]
    assert len(server.requests) == 5
    assert no_sleep[0] == 7
    assert 1 <= no_sleep[1] <= 2
    assert 2 <= no_sleep[2] <= 4


def test_faults_that_stay_are_told(server, no_sleep):
    server.script = [reply(500, "boom")] * 3
    with pytest.raises(FetchError, match="no answer in 3 tries .*500 boom.*lost"):
        api(server, retries=2)(["a"])
    with pytest.raises(FetchError, match="no answer in 1 tries"):
        ChatAPI("m", "http://127.0.0.1:9/v1", retries=0)(["a"])
    server.script = [reply(404, "no such model")]
    with pytest.raises(FetchError, match="404 no such model"):
        api(server)(["a"])
    server.script = [reply(200, '{"error": "odd"}')]
    with pytest.raises(FetchError, match="unknown form"):
        api(server)(["a"])
    assert len(server.requests) == 5


def test_slow_servers_run_out_of_time(server, no_sleep):
    def slow(handler):
        threading.Event().wait(0.5)
        return 200, {}, "{}"

    server.script = [slow]
    with pytest.raises(FetchError, match="timed out|Timeout"):
        api(server, timeout=0.1, retries=0)(["a"])


def test_requests_keep_to_the_rate(server):
    api(server, requests_per_minute=600, workers=4)([str(i) for i in range(5)])
    gaps = [b - a for a, b in zip(sorted(server.times), sorted(server.times)[1:], strict=False)]
    assert max(server.times) - min(server.times) >= 0.39  # five requests a tenth of a second apart
    assert len(gaps) == 4


def everything_in(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_the_key_stays_secret(server, tmp_path, no_sleep):
    server.script = [None, reply(401, f"bad key {KEY} given"), reply(500, f"leak {KEY}")]
    ask = api(server, cache=tmp_path, retries=0, workers=1)
    ask(["a"])
    for says in ("bad key \\*\\*\\* given.*OPENAI_API_KEY", "leak \\*\\*\\*"):
        with pytest.raises(FetchError, match=says) as caught:
            ask(["b"])
        assert KEY not in repr(caught.value)
        assert caught.value.__cause__ is None
    assert KEY not in repr(ask) + str(vars(ask))
    assert KEY.encode() not in everything_in(tmp_path)


def test_the_key_is_not_sent_on_to_another_server(server, no_sleep):
    other = Server()
    threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True).start()
    server.script = [reply(302, headers={"Location": f"http://127.0.0.1:{other.server_port}/steal"})]
    with pytest.raises(FetchError):
        api(server, retries=0)(["a"])
    other.shutdown()
    other.server_close()
    assert all("Authorization" not in headers for _, headers, _ in other.requests)


def test_without_a_key(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set"):
        api(server)(["a"])
    assert not server.requests
    assert api(server, key_env=None)(["a"]) == ["A"]
    assert "Authorization" not in server.requests[0][1]
    monkeypatch.setenv("MY_KEY", "other")
    api(server, key_env="MY_KEY")(["b"])
    assert server.requests[1][1]["Authorization"] == "Bearer other"


def test_odd_prompts(server, tmp_path):
    odd = ["half \ud83d pair", "<script>", "\x1b[31m", "שלום", ""]
    ask = api(server, cache=tmp_path)
    first = ask(odd)
    assert first[1:] == [text.upper() for text in odd[1:]]
    assert ask(odd) == first
    assert len(server.requests) == 5


@pytest.mark.parametrize("url", ["api.openai.com/v1", "ftp://x/v1", "https://user:secret@x/v1", "", "file:///etc"])
def test_bad_addresses(url):
    with pytest.raises(InputError, match="base_url") as caught:
        ChatAPI("m", url)
    assert "secret" not in str(caught.value)
