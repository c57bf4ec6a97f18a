"""What a user would put together without cotd: FastAPI, and `model.generate` for each request.

Of as many tokens as the longest label and its end have: T5's vocabulary has words in parts.
"""

from __future__ import annotations

import sys

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

app = FastAPI()
reads_and_writes = AutoConfig.from_pretrained(sys.argv[1], local_files_only=True).is_encoder_decoder
loader = AutoModelForSeq2SeqLM if reads_and_writes else AutoModelForCausalLM
tokenizer = AutoTokenizer.from_pretrained(
    sys.argv[1], local_files_only=True, padding_side="right" if reads_and_writes else "left"
)
model = loader.from_pretrained(sys.argv[1], local_files_only=True).eval()
before, after = ("predict: ", "") if reads_and_writes else ("Review: ", "\nSentiment:")


class Body(BaseModel):
    texts: list[str]


@app.post("/v1/predict")
def predict(body: Body) -> dict[str, list[str]]:
    asked = [before + text + after for text in body.texts]
    batch = tokenizer(asked, return_tensors="pt", padding=True, truncation=True, max_length=128)
    with torch.inference_mode():
        ids = model.generate(**batch, max_new_tokens=3 if reads_and_writes else 2, do_sample=False)
    written = ids if reads_and_writes else ids[:, batch["input_ids"].shape[1] :]
    return {"labels": tokenizer.batch_decode(written, skip_special_tokens=True)}


@app.get("/healthz")
def healthz() -> str:
    return "ok"


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
