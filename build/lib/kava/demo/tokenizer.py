"""Makes the demo's tokenizer: Qwen2's, with a vocabulary of the demo's own words."""

from collections.abc import Iterable

from transformers import Qwen2Tokenizer

EOS = "<|endoftext|>"
PAD = "<|pad|>"
ENOUGH = 4096  # far more than the pieces of the demo's text; training ends when every word is one token


def build_tokenizer(texts: Iterable[str], max_length: int) -> Qwen2Tokenizer:
    """Train the byte-pair encoding until each piece of `texts` is one token.

    The pieces are Qwen2's: a word with the space before it, a single digit, a run of signs with the line
    break after it. Other text falls apart into bytes, so that every text in Unicode normal form C comes back
    from its ids unchanged. No token is added at either end.

    Parameters
    ----------
    texts
        Text in the form in which the models will read it.
    max_length
        The models' number of positions, in tokens.

    Returns
    -------
    Qwen2Tokenizer
        With `<|endoftext|>` as end token and, as Qwen2 has it, as unknown token; `<|pad|>` as padding.
    """
    # AutoTokenizer (transformers 5) reads the tokenizer of any model of type qwen2 as a Qwen2Tokenizer and
    # rebuilds its pre-tokenizer, whatever the saved files say; another kind would not survive saving.
    empty = Qwen2Tokenizer(eos_token=EOS, unk_token=EOS, pad_token=PAD, model_max_length=max_length)
    return empty.train_new_from_iterator(texts, vocab_size=ENOUGH, show_progress=False)
