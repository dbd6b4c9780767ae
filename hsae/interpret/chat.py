"""A language model on this machine, by transformers."""

from __future__ import annotations

from threading import Event
from typing import Any

import torch

from hsae.device import choose_device
from hsae.errors import UserError
from hsae.loading import cannot_load, local_path


class Chat:
    """Answers chat messages, greedily.

    Args:
        name: a folder in the hub's layout, a hub id, or `bundled`.

    Raises:
        UserError: it is not there, or cannot be loaded.
    """

    concurrency = 1

    def __init__(self, name: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        self.stop = Event()
        place = str(local_path(name) or name)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
            self._model: Any = AutoModelForCausalLM.from_pretrained(place, dtype="auto", trust_remote_code=False)
        except Exception as error:  # transformers raises whatever fits an architecture
            raise UserError(f"model {name}: {cannot_load(error)}") from None
        self._model = self._model.to(choose_device("auto")).eval()
        self._longest = int(getattr(self._model.config, "max_position_embeddings", 0) or 1 << 20)

    @torch.inference_mode()
    def answer(self, messages: list[dict[str, str]], tokens: int) -> str:
        """The answer to chat messages. What does not fit in the model's context is left out at the front."""
        tokens = min(tokens, self._longest // 4)
        if self._tokenizer.chat_template:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            text = "\n\n".join(message["content"] for message in messages) + "\n"
        ids = self._tokenizer(text, return_tensors="pt", add_special_tokens=not self._tokenizer.chat_template)
        ids = ids["input_ids"][:, tokens - self._longest :].to(self._model.device)
        end = self._tokenizer.eos_token_id
        written = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=end
        )
        return self._tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
