"""A pretrained model's card: what it was made of, how, and how well it learned."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from cotd.pretraining.run_folder import RunFolder
from cotd.student import CARD
from cotd.task import get_task


def write_card(folder: RunFolder, summary: dict[str, Any]) -> None:
    """Writes `README.md` and `pretraining.json` beside the weights, and, where it learned labels, a student's `cotd.json`.

    None says where on this machine anything lay. `README.md`, whose presence means done, is written last.
    """
    shown = copy.deepcopy(summary)
    config = shown["config"]
    for key in ("storage", "tracking_uri"):
        del config[key]
    for block, key in (
        (config, "start"), (config, "language_teacher"), (config["encoder_teacher"], "model"), (config["answer_teacher"], "model"),
    ):  # fmt: skip
        if block and block[key]:
            block[key] = short(block[key])
    if config["probe"]["source"]:
        config["probe"]["source"] = name_of(config["probe"]["source"])
    for source in config["corpus"]["sources"] + config["corpus"]["protect"] + shown["corpus"]["sources"]:
        source["source"] = name_of(source["source"])
        if source.get("rationales"):
            source["rationales"] = short(source["rationales"])
    (folder.model / "pretraining.json").write_text(json.dumps(shown, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if student := student_card(summary["config"]):
        (folder.model / CARD).write_text(json.dumps(student, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder.model / "README.md").write_text(card(summary | {"config": config}, folder.points()), encoding="utf-8")


def student_card(config: dict[str, Any]) -> dict[str, Any] | None:
    """What makes the model a student that predicts as it is; None where pretraining taught it no labels."""
    learned = [name for name in ("answer", "gold") if config["training"]["steps"] and config["objectives"][f"{name}_share"]]
    if not learned:
        return None
    task = config["answer_teacher"]["task"] if config["answer_teacher"] else "sentiment"
    longest = max(config["corpus"]["chunk_tokens"])
    explains = bool(config["objectives"]["rationale_share"])
    return {
        "method": "pretraining",
        "writes_rationales": explains,
        "max_input_tokens": longest,
        "task": get_task(task).to_dict(),
    }


def card(summary: dict[str, Any], points: list[dict[str, float]]) -> str:
    """The card as Markdown."""
    config, corpus, shape = summary["config"], summary["corpus"], summary["shape"]
    lines = [
        f"# {config['name']}",
        "",
        f"A T5 of {summary['parameters']:,} parameters ({shape['num_layers']} encoder and {shape['num_decoder_layers']} decoder "
        f"layers, d_model {shape['d_model']}, {summary['vocabulary']:,} cased pieces) for English reviews, made by "
        "`cotd pretrain`. It is a base to finetune.",
        "",
        "## What it was made from",
        "",
        "| text | documents | left out as protected | with gold labels to learn |",
        "|---|---|---|---|",
        *(
            f"| {name_of(s['source'])} | {s['documents']:,} | {s['left_out']:,} | {s['labelled']:,} |"
            for s in corpus["sources"]
        ),
        "",
        f"{corpus['tokens']:,} pieces in {corpus['chunks']:,} chunks. Left out is every document that equals one of "
        f"{corpus['protected_texts']:,} texts of test and validation splits, or shares 13 words in a row with one (8 in a row "
        "with one shorter than that).",
        "",
        *teachers(config, summary["asked"]),
        "## How",
        "",
        f"{summary['steps']:,} steps, {summary['tokens'] / 1e6:.1f} M tokens seen, {summary['seconds'] / 60:.0f} minutes on "
        f"{summary['device']} in {summary['precision']}, after the teachers' answers. The recipe is `pretraining.json`'s "
        "`config`; the command is `cotd pretrain RECIPE` with it.",
        "",
        "## What it learned",
        "",
        *curve(points),
        "",
        "`hidden`, `sentence` and `answer` are mean squared errors in standardised units (1 is what predicting the mean "
        "gives), `label` is the divergence from the teacher's answer in nats, `gold` the cross-entropy of the gold label, "
        "`rationale`, `denoise` and `continue` are nats a token, all on held-out text. "
        f"`zero shot` is the accuracy on gold validation labels of {config['probe']['source']} as it is, `probe` that after "
        f"a quick finetune on {config['probe']['rows']:,} gold labels.",
        "",
        "## Limits and biases",
        "",
        "It has read film and product reviews in English and little else, so it knows their words, their opinions of people "
        "and places, and their slurs. What its teachers have wrong it has learned. "
        + (
            ""
            if any(config["objectives"].get(f"{kind}_share") for kind in ("denoise", "continue", "rationale"))
            else "It was not taught to write: rationales it learns in finetuning. "
        )
        + "Finetune it and measure before you rely on it.",
        "",
    ]
    return "\n".join(lines)


def name_of(source: str) -> str:
    """A source without the folders of the machine that it lay on."""
    return source.rsplit("/", 1)[-1] if source.endswith((".parquet", ".jsonl", ".csv")) else source


def short(folder: str) -> str:
    """A file's or a folder's last two names, without the folders of the machine that it lies on."""
    return "/".join(Path(folder).parts[-2:]) if Path(folder).is_absolute() else folder


def teachers(config: dict[str, Any], asked: int) -> list[str]:
    lines = []
    if config["start"]:
        lines += [f"It went on from {short(config['start'])}, whose own card, where it has one, is START.md.", ""]
    elif config["embeddings"] == "encoder_teacher":
        t = config["encoder_teacher"]
        lines += [
            f"Its first embeddings were each piece's mean hidden state in layer {t['layer']} of {name_of(t['model'])}.",
            "",
        ]
    if config["training"]["steps"] and config["encoder_teacher"] and config["objectives"]["hidden_share"]:
        t = config["encoder_teacher"]
        lines += [f"Its encoder learned to predict the hidden states of layer {t['layer']} of {name_of(t['model'])}.", ""]
    if asked:
        t = config["answer_teacher"]
        lines += [
            f"It learned what {name_of(t['model'])} says when it is asked for the {t['task']} of {asked:,} texts, whole passages "
            f"and phrases of one to eight words: {t['components']} principal components of its hidden state after layer "
            f"{t['layer']} at the place of the answer, and the label read off that state by a regression of "
            + ("gold labels." if t["readout"] == "gold" else "its answers."),
            "",
        ]
    if config["training"]["steps"] and config["objectives"]["rationale_share"]:
        lines += ["It learned to write what a teacher wrote about short texts.", ""]
    if config["training"]["steps"] and config["objectives"]["gold_share"]:
        named = " and ".join(name_of(s["source"]) for s in config["corpus"]["sources"] if s["labels"])
        lines += [
            f"It learned the gold labels of {named}, each passage's being its document's, and no others. What it does with few "
            "labels of those same reviews says nothing about few labels.",
            "",
        ]
    elif asked and config["answer_teacher"]["readout"] == "gold":
        named = " and ".join(name_of(s["source"]) for s in config["corpus"]["sources"] if s["labels"] and s["answers"])
        lines += [f"That regression is the only thing gold labels were used for; they are those of {named}.", ""]
    else:
        lines += ["No gold label was used.", ""]
    return lines


def curve(points: list[dict[str, float]]) -> list[str]:
    """Held-out losses and probes by step, at most a dozen rows."""
    names = [
        f"held_out_{name}" for name in ("hidden", "sentence", "answer", "label", "gold", "rationale", "denoise", "continue")
    ]
    names += ["zero_shot_accuracy", "probe_accuracy"]
    measured = [p for p in points if any(n in p for n in names)]
    names = [n for n in names if any(n in p for p in measured)]
    stride = max(1, len(measured) // 12)
    chosen = measured[::-1][::stride][::-1]
    head = ["step", *(n.removeprefix("held_out_").removesuffix("_accuracy").replace("_", " ") for n in names)]
    rows = [[f"{int(p['step']):,}", *(f"{p[n]:.3f}" if n in p else "" for n in names)] for p in chosen]
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
