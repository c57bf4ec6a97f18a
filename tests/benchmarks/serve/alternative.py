"""What a user would put together without cotd: FastAPI, and `model.generate` for each request."""

from __future__ import annotations

import sys

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

app = FastAPI()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True)
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], local_files_only=True).eval()


class Body(BaseModel):
    texts: list[str]


@app.post("/v1/predict")
def predict(body: Body) -> dict[str, list[str]]:
    batch = tokenizer(["predict: " + t for t in body.texts], return_tensors="pt", padding=True, truncation=True, max_length=128)
    with torch.inference_mode():
        ids = model.generate(**batch, max_new_tokens=3, do_sample=False)
    return {"labels": tokenizer.batch_decode(ids, skip_special_tokens=True)}


@app.get("/healthz")
def healthz() -> str:
    return "ok"


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
