"""The authors' own way to score with Qwen3-Reranker: the oracle of the tests."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.tiny_decoder import PROMPT


def published_scores(checkpoint, pairs, instruction=PROMPT.instruction, *, limit):
    """The authors' code (README of Qwen/Qwen3-Reranker-0.6B): rows padded on the left, softmax over no and yes."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    no, yes = (tokenizer.convert_tokens_to_ids(answer) for answer in ("no", "yes"))
    prefix = tokenizer.encode(PROMPT.system[0], add_special_tokens=False)
    suffix = tokenizer.encode(PROMPT.end, add_special_tokens=False)
    texts = [f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}" for query, document in pairs]
    most = limit - len(prefix) - len(suffix)
    inputs = tokenizer(texts, truncation="longest_first", return_attention_mask=False, max_length=most)
    inputs["input_ids"] = [prefix + ids + suffix for ids in inputs["input_ids"]]
    inputs = tokenizer.pad(inputs, padding=True, return_tensors="pt")
    with torch.inference_mode():
        last = model(**inputs).logits[:, -1, :]
    return torch.stack([last[:, no], last[:, yes]], dim=1).log_softmax(1)[:, 1].exp().numpy()
