"""A pretrained model's card: what it was made of, how, and how well it learned."""

from __future__ import annotations

from typing import Any

from cotd.pretraining.training import RunFolder


def write_card(folder: RunFolder, summary: dict[str, Any]) -> None:
    """Writes `README.md` and `pretraining.json` beside the weights."""
    import json

    (folder.model / "README.md").write_text(card(summary, folder.points()), encoding="utf-8")
    (folder.model / "pretraining.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False), encoding="utf-8")


def card(summary: dict[str, Any], points: list[dict[str, float]]) -> str:
    """The card as Markdown."""
    config, corpus = summary["config"], summary["corpus"]
    shape = config["shape"]
    lines = [
        f"# {config['name']}",
        "",
        f"A T5 of {summary['parameters']:,} parameters ({shape['num_layers']} encoder and {shape['num_decoder_layers']} decoder "
        f"layers, d_model {shape['d_model']}, {config['tokenizer']['vocabulary']:,} cased pieces) for English reviews, made by "
        "`cotd pretrain`. It is a base to finetune, not a classifier.",
        "",
        "## What it was made from",
        "",
        "| text | documents | left out as protected |",
        "|---|---|---|",
        *(f"| {name_of(s['source'])} | {s['documents']:,} | {s['left_out']:,} |" for s in corpus["sources"]),
        "",
        f"{corpus['tokens']:,} pieces in {corpus['chunks']:,} chunks. Left out is every document that equals one of "
        f"{corpus['protected_texts']:,} texts of test and validation splits, or shares 13 words in a row with one (8 in a row "
        "with one shorter than that).",
        "",
        *teachers(config),
        "## How",
        "",
        f"{summary['steps']:,} steps, {summary['tokens'] / 1e6:.1f} M tokens seen, {summary['seconds'] / 60:.0f} minutes on "
        f"{summary['device']} in {summary['precision']}. The recipe is `pretraining.json`'s `config`; the command is "
        "`cotd pretrain` with it.",
        "",
        "## What it learned",
        "",
        *curve(points),
        "",
        "`hidden`, `sentence` and `answer` are mean squared errors in standardised units (1 is what predicting the mean "
        "gives), `denoise` is nats a token, all on held-out text; the probe is the validation accuracy of a quick finetune on "
        f"{config['probe']['rows']:,} gold labels of {config['probe']['source']}.",
        "",
        "## Limits and biases",
        "",
        "It has read film and product reviews in English and little else, so it knows their words, their opinions of people "
        "and places, and their slurs. What its teachers have wrong it has learned. It writes short, simple sentences at best. "
        "Finetune it and measure before you rely on it.",
        "",
    ]
    return "\n".join(lines)


def name_of(source: str) -> str:
    """A source without the folders of the machine that it lay on."""
    return source.rsplit("/", 1)[-1] if source.endswith((".parquet", ".jsonl", ".csv")) else source


def teachers(config: dict[str, Any]) -> list[str]:
    lines = []
    if config["encoder_teacher"]:
        t = config["encoder_teacher"]
        lines += [f"Its encoder learned to predict the hidden states of layer {t['layer']} of {name_of(t['model'])}.", ""]
    if config["answer_teacher"] and config["objectives"]["answer_share"]:
        t = config["answer_teacher"]
        lines += [
            f"Its decoder's first state learned to predict the hidden state of layer {t['layer']} of {name_of(t['model'])} before "
            "it answers what the sentiment of a text is. No gold label was used.",
            "",
        ]
    return lines


def curve(points: list[dict[str, float]]) -> list[str]:
    """Held-out losses and probes by step, at most a dozen rows."""
    names = ["held_out_hidden", "held_out_sentence", "held_out_answer", "held_out_denoise", "probe_accuracy"]
    measured = [p for p in points if any(n in p for n in names)]
    names = [n for n in names if any(n in p for p in measured)]
    stride = max(1, len(measured) // 12)
    chosen = measured[::-1][::stride][::-1]
    head = ["step", *(n.replace("held_out_", "").replace("_", " ") for n in names)]
    rows = [[f"{int(p['step']):,}", *(f"{p[n]:.3f}" if n in p else "" for n in names)] for p in chosen]
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
