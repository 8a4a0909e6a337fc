"""Times of other engines with the same weights on the same card."""

from functools import partial

import numpy as np

from gpu.probe import CUDA, full_rows
from gpu.speed import median_seconds, rectangle

DEVICE = "cuda"


def sentence_transformers(settings):
    """Times of sentence-transformers, fp16 and sdpa on a GPU: its network alone, and `predict` with its tokenizer.

    `predict` sorts by length; the faster of its default of 32 rows a batch and of all rows in one counts.
    """
    import torch
    from sentence_transformers import CrossEncoder, __version__

    on_gpu = settings["provider"] == CUDA
    place = "cuda" if on_gpu else "cpu"
    options = {"dtype": torch.float16 if on_gpu else torch.float32, "attn_implementation": "sdpa"}
    encoder = CrossEncoder(settings["checkpoint"], device=place, model_kwargs=options)
    network, predicted, tokens = {}, {}, {}
    for name, lengths in settings["workloads"].items():
        tensors = {key: torch.from_numpy(array).long().to(place) for key, array in rectangle(lengths).items()}

        def forward(tensors=tensors):
            with torch.inference_mode():
                return encoder.model(**tensors).logits.float().cpu()

        network[name] = median_seconds(forward)
        pairs, tokens[name] = texts(encoder.tokenizer, lengths)
        predict = partial(encoder.predict, pairs, show_progress_bar=False)
        predicted[name] = min(median_seconds(partial(predict, batch_size=rows)) for rows in {32, len(pairs)})
    return {
        "version": __version__,
        "seconds": network,
        "predict_seconds": predicted,
        "predict_tokens": tokens,
    }


def varlen(settings):
    """Times of a network without padding in PyTorch: its own flash attention over rows of any length, fp16.

    What an engine written in PyTorch does that drops padding: the layers of transformers' XLM-R over the tokens of all
    rows end to end, each as it is and compiled (`torch.compile` fuses what lies between the products).
    """
    import torch
    from torch.nn import functional
    from torch.nn.attention.varlen import varlen_attn
    from transformers import AutoModelForSequenceClassification

    model = (
        AutoModelForSequenceClassification.from_pretrained(settings["checkpoint"], dtype=torch.float16)
        .to(DEVICE)
        .eval()
    )
    base, heads = model.base_model, model.config.num_attention_heads

    def layer(hidden, weights, bounds, longest):
        query, key, value = (
            functional.linear(hidden, *weights[name]).unflatten(-1, (heads, -1)) for name in ("query", "key", "value")
        )
        attended = varlen_attn(query, key, value, bounds, bounds, longest, longest).flatten(-2)
        hidden = functional.layer_norm(
            functional.linear(attended, *weights["out"]) + hidden, hidden.shape[-1:], *weights["norm"], 1e-5
        )
        widened = functional.gelu(functional.linear(hidden, *weights["wide"]))
        return functional.layer_norm(
            functional.linear(widened, *weights["narrow"]) + hidden, hidden.shape[-1:], *weights["last"], 1e-5
        )

    def parameters(module):
        return module.weight.detach(), module.bias.detach()

    every = [
        {
            "query": parameters(each.attention.self.query),
            "key": parameters(each.attention.self.key),
            "value": parameters(each.attention.self.value),
            "out": parameters(each.attention.output.dense),
            "norm": parameters(each.attention.output.LayerNorm),
            "wide": parameters(each.intermediate.dense),
            "narrow": parameters(each.output.dense),
            "last": parameters(each.output.LayerNorm),
        }
        for each in base.encoder.layer
    ]

    def score(run_layer, lengths):
        ids = torch.from_numpy(full_rows(lengths)["input_ids"]).long()[None].to(DEVICE)
        positions = (
            torch.cat([torch.arange(length) for length in lengths])[None].to(DEVICE) + model.config.pad_token_id + 1
        )
        bounds = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32).to(DEVICE)
        hidden = base.embeddings(input_ids=ids, position_ids=positions)[0]
        for weights in every:
            hidden = run_layer(hidden, weights, bounds, max(lengths))
        return model.classifier(hidden[bounds[:-1].long()][:, None]).float().cpu()

    found, compiled = {}, torch.compile(layer, dynamic=True)
    with torch.inference_mode():
        lengths = [5, 60, 17]
        padded = {key: torch.from_numpy(array).long().to(DEVICE) for key, array in rectangle(lengths).items()}
        ids = torch.from_numpy(full_rows(lengths)["input_ids"]).long().to(DEVICE)
        padded["input_ids"][padded["attention_mask"] > 0] = ids  # the same tokens in both
        difference = (score(layer, lengths) - model(**padded).logits.float().cpu()).abs().max().item()
        for kind, run_layer in (("eager", layer), ("compiled", compiled)):
            found[kind] = {
                name: median_seconds(partial(score, run_layer, lengths))
                for name, lengths in settings["workloads"].items()
            }
    return {"seconds": found, "difference": difference}


def texts(tokenizer, lengths):
    """Pairs of about these numbers of tokens, and how many tokens they have in all."""
    words = ("search", "engines", "rank", "documents")

    def pair(count):
        return ("what is a reranker", " ".join(words[index % len(words)] for index in range(count)))

    def size(count):
        return len(tokenizer(*pair(count))["input_ids"])

    empty, per_word = size(0), (size(40) - size(0)) / 40
    pairs = [pair(max(1, int((length - empty) / per_word))) for length in lengths]
    return pairs, sum(len(tokenizer(*each)["input_ids"]) for each in pairs)
