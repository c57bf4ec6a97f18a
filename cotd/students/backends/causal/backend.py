"""A causal language model as a student: it reads a prompt about a text, and goes on with the answer or the rationale."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cotd.data.truncation import Truncation, tail_length
from cotd.students.backends.base import IGNORED, Backend, Pair, in_columns, padded, weighted_loss
from cotd.students.backends.causal.attention import install, trees_of, uninstall
from cotd.students.backends.causal.lean import FAMILIES, lean_states
from cotd.students.backends.causal.prompts import Frame
from cotd.students.backends.causal.trees import pack_trees
from cotd.students.backends.t5.token_loss import token_loss
from cotd.tasks.base import Task
from cotd.utils.hardware import multiplies_bfloat16

GREEDY: dict[str, Any] = {"num_beams": 1, "do_sample": False, "use_cache": True}


class Causal(Backend):
    """Label and rationales of an example are continuations of one prompt, in whose words they are asked for.

    Answers are computed in bfloat16 where this machine multiplies it in hardware, as they are served.
    """

    kind = "causal"

    def __init__(self, model: Any, tokenizer: Any, task: Task, card: dict[str, Any]):
        from transformers import GenerationConfig

        super().__init__(model, tokenizer, task, card)
        self.chat = bool(card.get("chat"))
        self.frame = Frame(tokenizer, task, self.chat)
        # How its base was set to sample is no matter of the student's.
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )

    def sources(
        self, texts: Sequence[str], kind: str, limit: int, truncation: Truncation = "head"
    ) -> tuple[list[list[int]], list[bool]]:
        before, after = self.frame.before, self.frame.after[kind]
        room = max(1, limit - self.frame.tokens)  # whatever is asked for, so that a text is always cut alike
        tail = 0 if truncation == "head" else tail_length(truncation, room)
        encoded = self.token_ids(texts, self.space)
        kept = [ids if len(ids) <= room else [*ids[: room - tail], *ids[len(ids) - tail :]] for ids in encoded]
        return [[*before, *ids, *after] for ids in kept], [len(ids) > room for ids in encoded]

    def words(self, texts: Sequence[str], begins: bool = True) -> list[list[int]]:
        return self.token_ids(texts, "" if begins and self.chat else self.space)

    def targets(self, texts: Sequence[str], begins: bool = True) -> list[list[int]]:
        """As of every backend, but labels that one step tells apart have no end.

        Nobody reads it, and at first its loss would be many times the label's.
        """
        return self.words(texts) if begins and self.one_step else super().targets(texts, begins)

    @cached_property
    def one_step(self) -> bool:
        """Whether the student's labels are targets of their own, whose first tokens differ."""
        if any(self.card.get(key) for key in ("rationale_before_label", "rationale_after_label")):
            return False
        first = [ids[0] for ids in self.words([self.task.verbalize(label) for label in self.task.labels])]
        return len(first) > 1 and len(set(first)) == len(first)

    @property
    def prompt_form(self) -> dict[str, Any]:
        """Prompts differ by whether they are a chat."""
        return {"kind": self.kind, "chat": self.chat}

    def pack(self, examples: Sequence[Sequence[Pair]]) -> dict[str, Any]:
        """An example's pairs as one tree, or each as one of its own; see `pack_trees`."""
        part = pack_trees(examples if self.packs else [[pair] for pairs in examples for pair in pairs])
        numbers = torch.tensor([number for number, pairs in enumerate(examples) for _ in pairs])
        return {**part, "target_examples": numbers[part["pairs"]]}

    def loss(self, part: dict[str, Any], weights: Tensor, label_smoothing: float = 0.0) -> Tensor:
        learned = part["labels"] != IGNORED
        labels = part["labels"][learned]
        if self.packs and self.plain_output:
            return token_loss(self.states(part)[learned], self.output.weight, labels, weights, label_smoothing)
        return weighted_loss(self.logits(part, learned), labels, weights, label_smoothing)

    @property
    def output(self) -> Any:
        """The output layer."""
        return self.model.get_output_embeddings()

    def states(self, part: dict[str, Any]) -> Tensor:
        """The last hidden states of packed tokens: (N, d)."""
        if torch.is_grad_enabled() or not self.lean:
            return self.model.base_model(**packed_inputs(part))[0][0]
        return lean_states(self.model.base_model, part)

    def logits(self, part: dict[str, Any], chosen: Tensor) -> Tensor:
        positions = chosen.nonzero().squeeze(1)
        if self.packs:
            return self.model(**packed_inputs(part), logits_to_keep=positions).logits[0].float()
        return row_logits(self.model, part, positions, self.tokenizer.pad_token_id).float()

    def answer_logits(self, part: dict[str, Any], chosen: Tensor, tokens: Sequence[int] | None = None) -> Tensor:
        """As `logits`, of some tokens or all, as precise as answers are told apart by: bfloat16 has a logit of 20 to 1/8."""
        columns = slice(None) if tokens is None else tokens
        with self.autocast():
            if not (self.packs and self.plain_output):
                return self.logits(part, chosen)[:, columns]
            states = self.states(part)[chosen]
        return states.float() @ self.output.weight[columns].float().T

    @cached_property
    def packs(self) -> bool:
        """Whether the model computes packed trees as it does each sequence alone; not so if its attention is of another kind."""
        longest = self.card.get("max_input_tokens", 0) + self.card.get("max_target_tokens", 0)
        if longest > (getattr(self.model.config, "sliding_window", None) or longest) or not install(self.model):
            return False
        together, apart = (pack_trees(examples) for examples in self.probes())
        with torch.inference_mode():
            try:
                packed = self.model(**packed_inputs(together)).logits[0]
            except (TypeError, ValueError, RuntimeError):  # it takes no such arguments
                packed = None
            alone = row_logits(self.model, apart, torch.arange(len(apart["labels"])), self.tokenizer.pad_token_id)
        agree = packed is not None and close(packed[together["labels"] != IGNORED], alone[apart["labels"] != IGNORED])
        if not agree:
            uninstall(self.model)
        return agree

    @cached_property
    def plain_output(self) -> bool:
        """Whether logits are the output layer's weights times the last hidden states, neither scaled nor bounded."""
        if getattr(self.model.config, "final_logit_softcapping", None):
            return False  # which shows in large logits only
        part = self.on_device(pack_trees(self.probes()[0]))
        with torch.inference_mode():
            return close(self.model(**packed_inputs(part)).logits[0], self.states(part) @ self.output.weight.T)

    @cached_property
    def lean(self) -> bool:
        """Whether `lean_states` gives what the model's own `forward` does."""
        if self.model.config.model_type not in FAMILIES:
            return False
        base, part = self.model.base_model, self.on_device(pack_trees(self.probes()[0]))
        with torch.inference_mode(), torch.autocast(self.model.device.type, enabled=False):
            return close(lean_states(base, part), base(**packed_inputs(part))[0][0])

    def probes(self) -> tuple[list[list[Pair]], list[list[Pair]]]:
        """Two pairs that begin alike, as one example and as two; the shorter one comes last."""
        ids = (self.words(["one two three four five six seven eight nine ten"])[0] * 8)[:8]
        pairs = [Pair(0, ids[:5], ids[5:8]), Pair(0, [*ids[:4], ids[6]], ids[1:3])]
        return [pairs], [[pair] for pair in pairs]

    def on_device(self, part: dict[str, Any]) -> dict[str, Any]:
        """A part on the model's device."""
        return {name: tensor.to(self.model.device) for name, tensor in part.items()}

    @property
    def reduced(self) -> bool:
        """Whether answers are computed in bfloat16 although the weights are in float32."""
        return self.model.dtype == torch.float32 and multiplies_bfloat16(self.model.device.type == "cuda")

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision in which answers are scored."""
        return torch.autocast(self.model.device.type, torch.bfloat16) if self.reduced else nullcontext()

    def label_scores(self, sources: Sequence[list[int]], written: Sequence[list[int]] | None = None) -> Tensor:
        """By the token that would follow where the labels' first tokens differ, else of whole answers."""
        if self.first_tokens is None:
            return self.score(sources, [self.answers] * len(sources), written)
        pairs = [[Pair(0, source, self.first_tokens[:1])] for source in begun(sources, written)]
        part = self.on_device(self.pack(pairs))
        chosen = part["labels"] != IGNORED
        logits = self.answer_logits(part, chosen, self.first_tokens)
        return torch.empty_like(logits).index_copy_(0, part["pairs"][chosen], logits).cpu()

    def score(
        self,
        sources: Sequence[list[int]],
        candidates: Sequence[Sequence[list[int]]],
        written: Sequence[list[int]] | None = None,
    ) -> Tensor:
        """All candidates of a source in one pass over it."""
        examples = [
            [Pair(0, source, option) for option in options]
            for source, options in zip(begun(sources, written), candidates, strict=True)
        ]
        part = self.on_device(self.pack(examples))
        chosen = part["labels"] != IGNORED
        logs = self.answer_logits(part, chosen).log_softmax(dim=-1).gather(1, part["labels"][chosen, None]).squeeze(1)
        counts = [len(options) for options in candidates]
        return in_columns(logs.new_zeros(sum(counts)).index_add_(0, part["pairs"][chosen], logs).cpu(), counts)

    def generate(
        self,
        sources: Sequence[list[int]],
        kind: str,
        limit: int,
        streamer: Any = None,
        written: Sequence[list[int]] | None = None,
    ) -> list[list[int]]:
        ids, mask = padded(begun(sources, written), self.tokenizer.pad_token_id, self.model.device, left=True)
        with torch.inference_mode():
            model = in_bfloat16(self.model) if self.reduced else self.model  # once, and not for each token
            output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=limit, streamer=streamer, **GREEDY)
        return [self.without_special(row) for row in output[:, ids.shape[1] :].tolist()]


def in_bfloat16(model: Any) -> Any:
    """A copy of a model in bfloat16; what is computed beforehand for its positions stays as it is."""
    return copy.deepcopy(model, {id(p): torch.nn.Parameter(p.detach().bfloat16(), False) for p in model.parameters()})


def begun(sources: Sequence[list[int]], written: Sequence[list[int]] | None) -> list[list[int]]:
    """Sources with what has been written after them."""
    return list(sources) if written is None else [[*source, *after] for source, after in zip(sources, written, strict=True)]


def packed_inputs(part: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a model's `forward` for packed trees."""
    trees = trees_of(part)
    if trees is None:
        return {"input_ids": part["input_ids"][None], "use_cache": False}
    return {
        "input_ids": part["input_ids"][None], "position_ids": part["positions"][None], "attention_mask": trees.outer_mask,
        "trees": trees, "use_cache": False,
    }  # fmt: skip


def row_logits(model: Any, part: dict[str, Any], positions: Tensor, pad: int) -> Tensor:
    """The logits at positions of trees of one continuation each, by the model's own `forward` over padded rows: (L, V)."""
    ids, mask = padded(part["input_ids"].split(part["lengths"].tolist()), pad)
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask.bool()][positions]


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two ways of computing the same give the same, but for rounding."""
    tolerance = 1e-4 if theirs.dtype == torch.float32 else 3e-2
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())
