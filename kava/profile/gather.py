"""The tokens of a profile: the teacher's KV from a store, the student's from one run over the same examples."""

from pathlib import Path

import torch

from kava.config.models import ModelSettings
from kava.data.tokens import TokenSet, vocabulary_sha256
from kava.errors import UserError
from kava.kv import KeysValues, tokens_first
from kava.models.capture import capture
from kava.models.load import load_student, load_tokenizer
from kava.profile.measure import Sample
from kava.store.reader import StoreReader
from kava.training.batches import stored_batches, teacher_kv


@torch.inference_mode()
def gather(
    tokens: Path, store: StoreReader, student: ModelSettings, count: int, batch_size: int, device: torch.device
) -> Sample:
    """KV of the first training examples in both models, on the CPU; only the student is loaded.

    Examples of the token set, of which the store is sealed, are taken until they have `count` stored tokens, or there
    are no more; the student reads `batch_size` of them at once.

    Raises
    ------
    UserError
        A store of other data or with other tokens in each head, or a student with another tokenizer.
    """
    token_set = TokenSet(tokens)
    if vocabulary_sha256(load_tokenizer(student)) != token_set.manifest["vocabulary_sha256"]:
        raise UserError(
            f"the student's tokenizer {student.model} is not the one of the token set {tokens}; choose a student "
            "with the teacher's tokenizer"
        )
    batches = stored_batches(token_set, "train", store)
    examples, stored = 0, 0
    while stored < count and examples < len(batches):
        stored += len(store.tokens("train", examples).id)
        examples += 1
    model = load_student(student, device).eval()
    parts: list[list[torch.Tensor]] = []
    of_example = []
    first = 0
    for batch in batches.slice(range(examples), batch_size):
        ids, attention = (batch[name].to(device) for name in ("input_ids", "attention_mask"))
        captured, _ = capture(model, ids, attention, store.keys_form)
        kept = batch["kv_mask"].bool().cpu()
        both = (*teacher_kv(batch, torch.device("cpu")), *captured)
        parts.append([tokens_first(x.cpu())[kept] for x in both])
        of_example.append(first + kept.nonzero()[:, 0])
        first += len(kept)
    joined = [torch.cat(of_tensor) for of_tensor in zip(*parts, strict=True)]
    return Sample(KeysValues(*joined[:2]), KeysValues(*joined[2:]), torch.cat(of_example))
