"""A live model: one somebody has open, with its sites, ready to be read, changed and measured."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.errors import InputError, SiteError, closest
from sparselens.models.backends import Opened, sizes
from sparselens.models.batches import Batch, Reader, as_texts, is_chat
from sparselens.models.captured import Captured, FlatBatch, Output, assemble, flatten
from sparselens.models.engine import Context, Edit, Stop
from sparselens.models.sites import SiteTable, order
from sparselens.models.streaming import TextStream
from sparselens.models.verify import Check, verify

if TYPE_CHECKING:
    from sparselens.attach import Lens

DEFAULT_BATCH_TOKENS = 2048


class LiveModel:
    """A model that is open in transformers, TransformerLens or nnsight, behind one interface.

    Made by `load_model` and `wrap`. The original stays usable at `.native`, and what is attached is seen by its own
    calls too. Texts may be a string, a list of strings, a chat (list of messages with "role" and "content"), a list
    of chats, or a tensor of token ids `[batch, pos]`.

    Attributes:
        native: the model as it was given.
        tokenizer: its tokenizer, untouched; padding is done here.
        name: what SAEs record as the model they belong to.
        backend: "torch", "transformer_lens" or "nnsight".
        table: the sites it serves.
        checks: outcome of the identity probe made when it was wrapped.
    """

    def __init__(self, opened: Opened, tokenizer: Any, name: str):
        self.native, self.tokenizer, self.name = opened.native, tokenizer, name
        self.backend, self.module, self._engine = opened.backend, opened.module, opened.engine
        config: Any = self.module.config
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        self.n_layers, self.n_heads = sizes(config)
        self.n_kv_heads: int = getattr(config, "num_key_value_heads", None) or self.n_heads
        self.d_model: int = config.hidden_size
        self.d_head: int = getattr(config, "head_dim", None) or self.d_model // self.n_heads
        self.vocab_size: int = config.vocab_size
        self.max_length: int = config.max_position_embeddings
        self.causal: bool = getattr(config, "is_causal", None) is not False
        self.reader = Reader(tokenizer, self.max_length)
        self.table = SiteTable(self._engine.binder, self.n_layers, opened.paths)
        self.checks: list[Check] = verify(self)

    def __repr__(self) -> str:
        off = f", {len(self.table.disabled)} kinds of site off" if self.table.disabled else ""
        return (
            f"LiveModel({self.name!r}, backend={self.backend!r}, {self.n_layers} layers, d_model {self.d_model}, "
            f"{self.n_heads} heads ({self.n_kv_heads} kv), {len(self.sites())} sites{off})"
        )

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    @property
    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        """Output embedding with the final norm's gain folded in: rows to multiply directions of the stream with."""
        weight = self.module.get_output_embeddings().weight.detach()
        gain = None
        if "ln_final.hook_out" in self._engine.binder:
            bind = self._engine.binder["ln_final.hook_out"]
            norm = self._engine.find(bind.path.removesuffix(".hook_out"))
            gain = getattr(norm, "weight", None)
            if gain is not None and "gemma" in type(self.module).__name__.lower():
                gain = 1 + gain  # Gemma's norms multiply by (1 + weight)
        return weight if gain is None else weight * gain.detach()

    def sites(self, pattern: str = "*") -> list[str]:
        """Names of the sites that match a glob, in execution order. Raises `SiteError` when none does."""
        return self.table.names(pattern)

    def resolve(self, name: Any) -> str:
        """Canonical name of a site. Raises `SiteError` with the closest names."""
        return self.table.resolve(name)

    def resolve_all(self, sites: str | Iterable[str]) -> list[str]:
        """Canonical names of one name or glob, or of several, in execution order, each once."""
        given = [sites] if isinstance(sites, str) else list(sites)
        if not given:
            raise InputError("no site was given; see m.sites().")
        return sorted({s for g in given for s in self.sites(g)}, key=order)

    def width(self, site: str) -> int:
        """Size of the last axis at a site: the `d_in` an SAE for it must have."""
        site = self.resolve(site)
        return self.capture(torch.zeros(1, 1, dtype=torch.long), site)[site].shape[-1]

    def linear(self, site: str) -> nn.Module:
        """The linear layer that reads a site: `attn.q/k/v.hook_in`, `attn.hook_z` (output projection),
        `mlp.gate.hook_in`, `mlp.in.hook_in` (up), `mlp.hook_post` (down). Its weight is `[out, in]`, or `[in, out]`
        where transformers has a `Conv1D`.

        Raises:
            SiteError: an unknown site, or one that is not the input of just one linear layer.
        """
        name = self.resolve(site)
        found = self._engine.linear(name)
        if found is None:
            readable = [s for s in self.sites() if self._engine.linear(s) is not None]
            raise SiteError(f"{name} is not the input of a linear layer.{closest(name, readable)}")
        return found

    def untouched(self) -> AbstractContextManager[None]:
        """Take off whatever is attached for the length of the block."""
        return self._engine.bare()

    def verify(self) -> list[Check]:
        """Probe the identities of the site table again; kinds whose identity fails are switched off."""
        self.checks = verify(self)
        return self.checks

    def batches(
        self,
        texts: Any,
        *,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        role: str | None = None,
        max_length: int | None = None,
        long: str = "error",
        padding_side: str = "right",
        empty: str = "error",
        span: str = "all",
        sort: bool = True,
    ) -> Iterator[Batch]:
        """Stream texts as padded batches, sorted by length inside windows of 1,024 texts.

        Args:
            texts: texts, or an iterator of them.
            batch_tokens: most tokens in a batch, padding included.
            role: None reads texts as they are; "user" or "assistant" wraps each as one turn of a chat.
            max_length: longest row in tokens; the model's own limit when None.
            long: what to do with a longer text: "error", "cut" it, or read it in "chunk"s.
            padding_side: "left" or "right".
            empty: "error", or "skip" texts without tokens.
            span: which messages of a chat are content: "all", the "prompt" or the "answer" (the assistant's).
            sort: False keeps the order given.
        """
        return self.reader.batches(
            texts,
            batch_tokens=batch_tokens,
            role=role,
            max_length=max_length,
            long=long,
            padding_side=padding_side,
            empty=empty,
            span=span,
            sort=sort,
        )

    def forward(self, batch: Batch) -> Tensor:
        """Run one batch through the module, under whatever is attached. Returns logits `[b, pos, d_vocab]`."""
        batch = batch.to(self.device)
        engine = self._engine
        kwargs: dict[str, Any] = {"input_ids": batch.ids, "use_cache": False}
        ragged = not bool(batch.mask.all())
        # In a causal model, padding on the right changes no real token, and attention without a mask is faster.
        if ragged and (engine.touches_attention or not self.causal or not bool(batch.mask[:, 0].all())):
            kwargs |= {"attention_mask": batch.mask.long(), "position_ids": batch.positions}
        with engine.lock:
            engine.given_mask = batch.mask
            try:
                return self.module(**kwargs).logits
            finally:
                engine.given_mask = None

    @torch.no_grad()
    def logits(self, batch: Batch) -> Float[Tensor, "b pos d_vocab"]:
        """Logits of one batch without gradients, under whatever is attached."""
        return self.forward(batch)

    def _read(self, batch: Batch, sites: Sequence[str]) -> dict[str, Tensor]:
        """Values at `sites` for one batch. The pass stops at the last of them."""
        found: dict[str, Tensor] = {}

        def take(value: Tensor, context: Context) -> None:
            found[context.site] = value.detach().clone()  # some models change tensors in place later
            if len(found) == len(sites):
                raise Stop

        with self._engine.attach([Edit(s, take) for s in sites]), torch.no_grad(), suppress(Stop):
            self.forward(batch)
        return found

    def capture(
        self,
        texts: Any,
        sites: str | Iterable[str],
        *,
        padding_side: str = "right",
        role: str | None = None,
        max_length: int | None = None,
        long: str = "error",
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
    ) -> Captured:
        """Copy the values at some sites for some texts. The forward pass stops at the last site.

        Under an attachment the edited values are seen. Arguments as for `batches`.

        Raises:
            SiteError: an unknown site. InputError: texts that cannot be read.
        """
        names = self.resolve_all(sites)
        kept = list(
            self.batches(
                texts,
                batch_tokens=batch_tokens,
                role=role,
                max_length=max_length,
                long=long,
                padding_side=padding_side,
            )
        )
        return assemble(kept, [self._read(b, names) for b in kept], padding_side)

    def stream(
        self,
        texts: Any,
        sites: str | Iterable[str],
        *,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        role: str | None = None,
        max_length: int | None = None,
        long: str = "error",
        empty: str = "error",
        span: str = "all",
    ) -> Iterator[FlatBatch]:
        """Stream activations of any number of texts as flat `[tokens, d]` batches; nothing is held back.

        Real tokens only; `.content` and `.first` say which are special, template, or attention sinks. The forward
        pass stops at the last site. Arguments as for `batches`.
        """
        names = self.resolve_all(sites)
        for batch in self.batches(
            texts, batch_tokens=batch_tokens, role=role, max_length=max_length, long=long, empty=empty, span=span
        ):
            yield flatten(batch, self._read(batch, names))

    def run(
        self,
        texts: Any,
        *,
        grad: bool = False,
        padding_side: str = "right",
        role: str | None = None,
        max_length: int | None = None,
        long: str = "error",
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
    ) -> Output:
        """Logits of some texts, in their order. For many texts use `batches` and `logits`, which hold one batch.

        Args:
            grad: keep the graph, so that `backward` reaches attachments and weights. Others as for `batches`.
        """
        kept = list(
            self.batches(
                texts,
                batch_tokens=batch_tokens,
                role=role,
                max_length=max_length,
                long=long,
                padding_side=padding_side,
            )
        )
        with torch.set_grad_enabled(grad):
            got = assemble(kept, [{"unembed.hook_out": self.forward(b)} for b in kept], padding_side)
        return Output(got["unembed.hook_out"], got.tokens, got.mask, got.doc)

    def loss(
        self,
        texts: Any,
        *,
        role: str | None = None,
        max_length: int | None = None,
        long: str = "error",
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
    ) -> float:
        """Mean cross-entropy in nats over all predicted tokens of the texts, under whatever is attached.

        Raises:
            InputError: no text has two tokens, so there is nothing to predict.
        """
        total, count = 0.0, 0
        for batch in self.batches(texts, batch_tokens=batch_tokens, role=role, max_length=max_length, long=long):
            target = batch.mask[:, 1:] & batch.mask[:, :-1]
            if not bool(target.any()):
                continue
            logits = self.logits(batch)[:, :-1][target.to(self.device)].float()
            total += float(
                nn.functional.cross_entropy(logits, batch.ids[:, 1:][target].to(logits.device), reduction="sum")
            )
            count += int(target.sum())
        if not count:
            raise InputError("no text has two tokens or more, so there is no loss to measure.")
        return total / count

    @torch.no_grad()
    def generate(
        self,
        prompt: Any,
        max_new_tokens: int = 64,
        *,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        on_text: Callable[[str], None] | None = None,
    ) -> str | list[str]:
        """Let the model write on, under whatever is attached. Returns the new text only.

        A fresh KV cache is used for every call, since a cache made under other edits would be stale. Chats get the
        template's generation prompt.

        Args:
            prompt: a text or a chat gives a string; a list of them gives a list.
            max_new_tokens: most tokens to write.
            do_sample: False takes the likeliest token each time.
            temperature, top_p: shape of the sampling.
            seed: seed of the sampling; the global generator is left as it was.
            batch_tokens: most tokens in a batch, the new ones counted.
            on_text: called with each piece of the new text as it comes. What it raises ends the writing.

        Raises:
            InputError: `on_text` with several prompts, or prompts that cannot be read.
        """
        one = isinstance(prompt, str) or is_chat(prompt)
        if on_text is not None and not one:
            raise InputError("on_text hears one text being written: give one prompt, not a list.")
        texts = list(as_texts(prompt))
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_p": top_p}
            if do_sample
            else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        )
        room = max(1, self.max_length - max_new_tokens)
        rows = self.reader.rows(texts, 0, role=None, max_length=room, long="error", empty="error", generation=True)
        rows.sort(key=lambda r: len(r.ids))
        written: dict[int, str] = {}
        step = max(1, batch_tokens // (max(len(r.ids) for r in rows) + max_new_tokens))
        with self._engine.lock, torch.random.fork_rng(devices=[] if self.device.type == "cpu" else None):
            torch.manual_seed(seed)
            for at in range(0, len(rows), step):
                batch = self.reader.pad(rows[at : at + step], "left").to(self.device)
                out = self.module.generate(
                    input_ids=batch.ids,
                    attention_mask=batch.mask.long(),
                    max_new_tokens=max_new_tokens,
                    pad_token_id=int(self._pad_id),
                    streamer=None if on_text is None else TextStream(self.tokenizer, on_text),
                    **sampling,
                )
                new = self.tokenizer.batch_decode(out[:, batch.ids.shape[1] :], skip_special_tokens=True)
                written |= dict(zip(batch.doc.tolist(), new, strict=True))
        return written[0] if one else [written[i] for i in range(len(texts))]

    @property
    def _pad_id(self) -> int:
        found = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((i for i in found if i is not None), 0)

    def attach(self, thing: Any, at: str | Iterable[str] | None = None) -> "AbstractContextManager[Lens]":
        """Put something sparse on the model for the length of a `with` block; undo is exact.

        Args:
            thing: an SAE, an edit, anything with `edits(model, at)`, or a list of such, applied in order.
            at: site, glob or list of sites; None uses the attachment's own.
        """
        from sparselens.attach import attach

        return attach(self, thing, at)
