"""Any encoder-decoder, by its own `forward` over padded rows of like length."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import chain, groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cotd.data.truncation import Truncation, tail_length, truncate
from cotd.students.backends.base import ASK_LABEL, IGNORED, TARGET_KINDS, Backend, Pair, in_columns, padded, weighted_loss
from cotd.tasks.base import Task
from cotd.utils.iteration import batched

# The cache must be requested: a base whose configuration says `use_cache: false`, as the embedded student's does, would
# otherwise read all that it has written again for each token.
GREEDY: dict[str, Any] = {
    "num_beams": 1, "do_sample": False, "use_cache": True, "no_repeat_ngram_size": 0, "repetition_penalty": 1.0,
    "min_length": 0, "forced_eos_token_id": None,
}  # fmt: skip
GROUP_ROWS = 8  # rows that are padded to one width


class Seq2Seq(Backend):
    """An encoder reads prefix and text, a decoder writes the target.

    The prefix of the task says which target is asked for, or the decoder is told, if label and rationale share an encoded input.
    """

    kind = "seq2seq"

    def __init__(self, model: Any, tokenizer: Any, task: Task, card: dict[str, Any]):
        super().__init__(model, tokenizer, task, card)
        self.shared_encoder = bool(card.get("shared_encoder"))

    def sources(
        self, texts: Sequence[str], kind: str, limit: int, truncation: Truncation = "head"
    ) -> tuple[list[list[int]], list[bool]]:
        asks_label = kind in ASK_LABEL or (kind == "rationale" and self.shared_encoder)
        prefix = self.task.label_prefix if asks_label else self.task.rationale_prefix
        # Not verbose: it would warn of indexing errors, which a T5, whose positions are relative, does not have.
        encoded = self.tokenizer([prefix + text for text in texts], verbose=False)["input_ids"] if len(texts) else []
        tail = tail_length(truncation, limit)
        return [truncate(ids, limit, tail) for ids in encoded], [len(ids) > limit for ids in encoded]

    def words(self, texts: Sequence[str], begins: bool = True) -> list[list[int]]:
        return self.token_ids(texts, "" if begins else self.space)

    def decoder_prompt(self, kind: str) -> list[int]:
        """What the decoder reads before it writes a target."""
        config = self.model.config
        forced = getattr(config, "forced_bos_token_id", None)  # BART's decoder begins with </s><s>
        if forced is None:
            forced = getattr(self.model.generation_config, "forced_bos_token_id", None)
        start = [config.decoder_start_token_id, *([] if forced is None else [forced])]
        return [*start, *self._rationale_prompt] if kind == "rationale" and self.shared_encoder else start

    @cached_property
    def _rationale_prompt(self) -> list[int]:
        return self.tokenizer(self.task.rationale_prefix, add_special_tokens=False)["input_ids"]

    def order(self, pair: Pair) -> tuple[int, int]:
        """Pairs are sorted by this, so that neighbours, which are computed together, are of a kind and of like length."""
        return pair.kind, -len(pair.source) - len(pair.target)

    def pack(self, examples: Sequence[Sequence[Pair]]) -> dict[str, Any]:
        """Sequences one after another without padding, inputs the longest first and pairs by `order`.

        Returns:
            `input_ids` (N,) and `input_lengths` (I,) of the distinct inputs; `sources` (P,) the input of each pair;
            `decoder_input_ids` (M,); `labels` (M,), IGNORED where nothing is learned; `target_lengths` (P,); `target_kinds` (M,),
            positions in TARGET_KINDS; `target_weights` and `target_examples` (M,).
        """
        numbered = [(pair, number) for number, pairs in enumerate(examples) for pair in pairs]
        numbered.sort(key=lambda entry: self.order(entry[0]))
        pairs = [pair for pair, _ in numbered]
        # The samples of an example share their input, which is encoded once.
        inputs = sorted(dict.fromkeys(tuple(pair.source) for pair in pairs), key=len, reverse=True)
        positions = {source: position for position, source in enumerate(inputs)}
        prompts = [self.decoder_prompt(TARGET_KINDS[pair.kind]) for pair in pairs]
        decoder_inputs = [[*prompt, *pair.target[:-1]] for prompt, pair in zip(prompts, pairs, strict=True)]
        labels = [[IGNORED] * (len(prompt) - 1) + [*pair.target] for prompt, pair in zip(prompts, pairs, strict=True)]
        lengths = torch.tensor([len(ids) for ids in decoder_inputs])
        return {
            "input_ids": torch.tensor(list(chain.from_iterable(inputs))),
            "input_lengths": torch.tensor([len(source) for source in inputs]),
            "sources": torch.tensor([positions[tuple(pair.source)] for pair in pairs]),
            "decoder_input_ids": torch.tensor(list(chain.from_iterable(decoder_inputs))),
            "labels": torch.tensor(list(chain.from_iterable(labels))),
            "target_lengths": lengths,
            "target_kinds": torch.tensor([pair.kind for pair in pairs]).repeat_interleave(lengths),
            "target_weights": torch.tensor([pair.weight for pair in pairs]).repeat_interleave(lengths),
            "target_examples": torch.tensor([number for _, number in numbered]).repeat_interleave(lengths),
        }

    def loss(self, part: dict[str, Any], weights: Tensor, label_smoothing: float = 0.0) -> Tensor:
        learned = part["labels"] != IGNORED
        return weighted_loss(self.logits(part, learned), part["labels"][learned], weights, label_smoothing)

    def logits(self, part: dict[str, Any], chosen: Tensor) -> Tensor:
        return padded_logits(self.model, part, chosen).float()

    def label_scores(self, sources: Sequence[list[int]], written: Sequence[list[int]] | None = None) -> Tensor:
        """By one decoder step where the labels' first tokens differ, else of whole answers."""
        if self.first_tokens is None:
            return self.score(sources, [self.answers] * len(sources), written)
        prompt = self.decoder_prompt("label")
        decoder_inputs = [[*prompt, *before] for before in written or [[]] * len(sources)]
        # Padding is on the right: the decoder looks back only, and its output beyond a row's end is not used.
        pad, device = self.tokenizer.pad_token_id, self.model.device
        ids, mask = padded(sources, pad, device)
        decoder_ids, _ = padded(decoder_inputs, pad, device)
        output = self.model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids, use_cache=False)
        last = torch.tensor([len(row) - 1 for row in decoder_inputs])
        return output.logits[torch.arange(len(last)), last][:, self.first_tokens].float().cpu()

    def score(
        self,
        sources: Sequence[list[int]],
        candidates: Sequence[Sequence[list[int]]],
        written: Sequence[list[int]] | None = None,
    ) -> Tensor:
        pad, device, prompt = self.tokenizer.pad_token_id, self.model.device, self.decoder_prompt("label")
        counts = [len(options) for options in candidates]
        ids, mask = padded(sources, pad, device)
        encoded = self.model.get_encoder()(input_ids=ids, attention_mask=mask)[0]
        row = torch.arange(len(sources), device=device).repeat_interleave(torch.tensor(counts, device=device))
        begun = [
            [*prompt, *before, *option[:-1]]
            for before, options in zip(written or [[]] * len(sources), candidates, strict=True)
            for option in options
        ]
        targets = [option for options in candidates for option in options]
        decoder_ids, _ = padded(begun, pad, device)
        output = self.model(
            encoder_outputs=(encoded[row],), attention_mask=mask[row], decoder_input_ids=decoder_ids, use_cache=False
        )
        logs = output.logits.float().log_softmax(dim=-1)
        scores = [
            logs[i, len(ids) - len(target) : len(ids)].gather(1, torch.tensor(target, device=device)[:, None]).sum()
            for i, (ids, target) in enumerate(zip(begun, targets, strict=True))
        ]
        return in_columns(torch.stack(scores).cpu(), counts)

    def generate(
        self,
        sources: Sequence[list[int]],
        kind: str,
        limit: int,
        streamer: Any = None,
        written: Sequence[list[int]] | None = None,
    ) -> list[list[int]]:
        prompts = [[*self.decoder_prompt(kind), *before] for before in written or [[]] * len(sources)]
        ids, mask = padded(sources, self.tokenizer.pad_token_id, self.model.device)
        begun = torch.tensor(prompts, device=self.model.device)
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=ids, attention_mask=mask, decoder_input_ids=begun, max_new_tokens=limit, streamer=streamer, **GREEDY
            )
        return [self.without_special(row) for row in output[:, begun.shape[1] :].tolist()]


def padded_logits(model: Any, part: dict[str, Any], chosen: Tensor) -> Tensor:
    """The logits at chosen target tokens, by the model's own `forward` over padded rows of like length: (L, V).

    Args:
        part: what `Seq2Seq.pack` gives.
        chosen: (M,) booleans.
    """
    inputs, lengths = part["input_ids"].split(part["input_lengths"].tolist()), part["target_lengths"]
    targets, learned = part["decoder_input_ids"].split(lengths.tolist()), chosen.split(lengths.tolist())
    kinds = part["target_kinds"][lengths.cumsum(0) - 1].tolist()
    sources, pad = part["sources"].tolist(), model.config.pad_token_id
    logits = []
    for _, alike in groupby(range(len(targets)), key=kinds.__getitem__):
        for rows in batched(alike, GROUP_ROWS):
            ids, mask = padded([inputs[sources[i]] for i in rows], pad)
            decoder_ids, _ = padded([targets[i] for i in rows], pad)
            output = model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids, use_cache=False)
            logits.append(output.logits[pad_sequence([learned[i] for i in rows], batch_first=True)])
    return torch.cat(logits)
