"""Fuzzed texts: each gives the vector that the library's own forward pass gives to its tokens, alone as in a batch."""

import random
from pathlib import Path
from typing import Any

import numpy as np

from tests.attack.fuzzing import ask, text
from tests.attack.trials import Case, Outcome, failure

_CLOSE = 2e-5


class FuzzedTexts:
    """One text, with three others beside it; `model` is "tiny" (bytes, made here) or a bundled name."""

    def __init__(self, model: str, counts: dict[str, int]) -> None:
        self.name, self.model, self.counts = f"fuzz/texts, {model}", model, counts
        self.encoder: Any = None

    def absent(self) -> str:
        return ""

    def prepare(self, folder: Path) -> None:
        from search_r3_mteb import SearchR3Encoder
        from tests.train.loops import byte_folder

        model = byte_folder(folder / "model") if self.model == "tiny" else self.model
        settings = {"max_reasoning_tokens": 4, "max_length": 256, "dtype": "float32", "show_progress_bar": False}
        self.encoder = SearchR3Encoder(str(model), **settings)

    def draw(self, rng: random.Random) -> Case:
        others = [text(rng, surrogates=False) for _ in range(3)]
        instruction = text(rng)[:50] if rng.random() < 0.1 else None
        return {"text": text(rng), "others": others, "instruction": instruction, "think": rng.random() < 0.3}

    def attempt(self, case: Case, place: Path) -> Outcome:
        given, encoder, instruction = case["text"], self.encoder, case["instruction"]
        bad = any(0xD800 <= ord(letter) < 0xE000 for letter in given + (instruction or ""))
        answer = ask(lambda: encoder.encode_document(given, instruction=instruction))
        if answer.failed is not None:
            return answer.failed
        if answer.message is not None:
            return Outcome("refused") if bad else failure("refused", answer.message)
        if bad:
            return failure("silent", "a lone surrogate has a vector")
        prompt = encoder.renderer.render(given, "direct", instruction)
        if (wrong := self._tokens(prompt, given, instruction)) is not None:
            return failure("silent", wrong)
        if not np.allclose(answer.value, self._forward(prompt.token_ids), atol=_CLOSE):
            return failure("silent", "the vector is not that of the library's forward pass")
        batch = [*case["others"][:2], given, *case["others"][2:]]
        if not np.allclose(
            encoder.encode_document(batch, instruction=[None, None, instruction, None])[2], answer.value, atol=_CLOSE
        ):
            return failure("silent", "another vector in a batch")
        if not case["think"]:
            return Outcome("right")
        alone, beside = encoder.think([given])[0], encoder.think(batch)[2]
        if alone.token_ids != beside.token_ids or not np.allclose(alone.vector, beside.vector, atol=_CLOSE):
            return failure("silent", f"another thought in a batch: {alone.text!r}, {beside.text!r}")
        return Outcome("right")

    def _tokens(self, prompt: Any, given: str, instruction: str | None) -> str | None:
        """What is wrong with a prompt's tokens; whether they still say the text can be asked of bytes alone."""
        frame_before, frame_after = self.encoder.renderer.frame_ids("direct")
        ids = prompt.token_ids
        if len(ids) > self.encoder.max_length:
            return f"{len(ids)} tokens"
        if ids[len(ids) - len(frame_after) :] != frame_after or ids[: len(frame_before)] != frame_before:
            return "the frame of the prompt changed"
        if self.model != "tiny":
            return None
        inside = ids[len(frame_before) : len(ids) - len(frame_after)]
        tokenizer = self.encoder.tokenizer
        if set(inside) & set(tokenizer.all_special_ids):
            return "a special token in the text"
        said = tokenizer.decode(inside, clean_up_tokenization_spaces=False)
        wanted = f"{instruction}\n{given}" if instruction else given
        whole = said == wanted if not prompt.truncated_tokens else wanted.startswith(said.rstrip("\ufffd"))
        return None if whole or instruction else f"the tokens say {said!r:.200}"

    def _forward(self, ids: list[int]) -> Any:
        import torch

        with torch.no_grad():
            states = self.encoder.model.base_model(torch.tensor([ids])).last_hidden_state[0, -1].double().numpy()
        return (states / np.linalg.norm(states)).astype(np.float32)
