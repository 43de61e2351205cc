"""A two-layer BERT with eleven words and random weights, as a fast replacement for the real encoders."""

from pathlib import Path

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "rare", "disease", "liver", "copper", "eye", "wilson"]


def save_bert(directory: Path, seed: int, head: str = "BertModel", **config: object) -> str:
    """Save a tokenizer and a model of the transformers class `head` to `directory`, and return its path."""
    import torch
    import transformers

    directory.mkdir()
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY))
    transformers.BertTokenizer(str(directory / "vocab.txt")).save_pretrained(directory)
    torch.manual_seed(seed)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    made = transformers.BertConfig(vocab_size=len(VOCABULARY), **small, **config)
    getattr(transformers, head)(made).eval().save_pretrained(directory)
    return str(directory)
