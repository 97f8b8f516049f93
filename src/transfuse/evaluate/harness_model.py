"""A model as lm-evaluation-harness wants one, on our scoring engine: its rules, its scores, sooner."""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from transfuse.errors import DataError, MissingExtraError
from transfuse.evaluate.greedy import Greedy, GreedyRequest, generate_greedily
from transfuse.evaluate.library_generation import continue_by_library, why_not_greedy
from transfuse.evaluate.likelihoods import BatchLimits, Continuation, Likelihood, log_likelihoods
from transfuse.evaluate.request_store import RequestStore, request_key
from transfuse.evaluate.scoring_model import ScoringModel
from transfuse.evaluate.tried_model import TriedModel

if TYPE_CHECKING:
    from lm_eval.api.model import TemplateLM

OnRequests = Callable[[int, int], None]
"""Called with the numbers of requests answered and to be answered in the call at work."""

MAX_NEW_TOKENS = 256
"""The harness's default, where a task names none."""


def _nothing(n_done: int, n_all: int) -> None:
    """Nobody wants to know."""


def TransfuseLM(  # noqa: N802 - it makes an object of a class that cannot exist before lm-eval is imported
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    compute_dtype: torch.dtype,
    identity: str,
    max_batch_rows: int = 64,
    max_batch_tokens: int = 16384,
    max_length: int | None = None,
    add_bos_token: bool | None = None,
    store: RequestStore | None = None,
    on_requests: OnRequests = _nothing,
) -> "TemplateLM":
    """A model for `lm_eval.evaluate`; scores are those of lm-eval's own `hf` model.

    Tokens, left truncation, stop strings and chat templates follow `lm_eval.models.huggingface.HFLM`. Log-likelihoods
    are summed in float32 whatever the model's precision; greedy answers are those of batch size 1, since HFLM lets an
    answer go on while others of its batch do.

    Args:
        model: a causal language model of transformers, perhaps wrapped by PEFT, or any module whose `forward` takes
            `input_ids` and gives `logits`; on its device already.
        tokenizer: the model's.
        compute_dtype: bfloat16 for autocast where weights have another type, float32 for none.
        identity: digest of model, adapter and precision, part of every key in `store`.
        max_batch_rows: sequences read at a time.
        max_batch_tokens: sequences x longest one, room for answers counted.
        max_length: context length; None takes the configuration's, as HFLM does.
        add_bos_token: whether texts begin with BOS; None leaves it to the tokenizer.
        store: where answers are looked up, and kept as they arrive.
        on_requests: called with the numbers of requests answered and to be answered, batch by batch.

    Returns:
        An `lm_eval.api.model.TemplateLM` with `loglikelihood`, `loglikelihood_rolling`, `generate_until`, and `notes`:
        what was run plainly, and why.

    Raises:
        MissingExtraError: lm-eval is not installed.
    """
    made = _harness_class()(model, tokenizer, TriedModel(ScoringModel(model, compute_dtype)))
    made.limits = BatchLimits(max_batch_rows, max_batch_tokens)
    made.identity, made.store, made.on_requests = identity, store, on_requests
    made.fixed_max_length, made.add_bos_token = max_length, add_bos_token
    return made


_made: list[Any] = []


def _harness_class() -> Any:
    """The class, made when it is first needed."""
    if _made:
        return _made[0]
    try:
        from lm_eval.api.model import TemplateLM
        from lm_eval.models import utils as rules
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    except ImportError as err:
        raise MissingExtraError("benchmarks need lm-eval: pip install 'transfuse[benchmarks]'") from err

    class HarnessModel(TemplateLM):
        limits: BatchLimits
        identity: str
        store: RequestStore | None
        on_requests: OnRequests
        fixed_max_length: int | None
        add_bos_token: bool | None
        backend = "causal"

        def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, tried: TriedModel) -> None:
            super().__init__()
            base = getattr(model, "get_base_model", lambda: model)()
            self.tried, self._device = tried, tried.model.device
            self._config: Any = getattr(base, "config", None)
            self.tokenizer: Any = tokenizer
            if tokenizer.pad_token_id is None:
                # HFLM gives the tokenizer itself a padding token; the caller's stays as it is.
                self.tokenizer = rules.configure_pad_token(
                    copy.deepcopy(tokenizer), model_config=self._config
                )

        @property
        def notes(self) -> list[str]:
            return self.tried.notes

        @property
        def eot_token_id(self) -> int:
            return self.tokenizer.eos_token_id

        @property
        def prefix_token_id(self) -> int:
            bos = self.tokenizer.bos_token_id
            return self.tokenizer.eos_token_id if bos is None else bos

        @property
        def max_length(self) -> int:
            return self.fixed_max_length or rules.resolve_max_length(self._config, self.tokenizer)

        @property
        def max_gen_toks(self) -> int:
            return MAX_NEW_TOKENS

        @property
        def tokenizer_name(self) -> str:
            return str(self.tokenizer.name_or_path).replace("/", "__")

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            del kwargs
            special = rules._add_special_kwargs(add_special_tokens, self.add_bos_token)
            if add_special_tokens is None and rules.has_bos_prefix(
                string, self.tokenizer.decode(self.prefix_token_id)
            ):
                special["add_special_tokens"] = False
            return list(self.tokenizer.encode(string, **special))

        def prompt_ids(self, text: str) -> list[int]:
            """Tokens of a prompt to be continued, as HFLM's `tok_batch_encode` gives them."""
            special = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
            if rules.has_bos_prefix(text, getattr(self.tokenizer, "bos_token", None)):
                special = {"add_special_tokens": False}
            return list(self.tokenizer(text, **special)["input_ids"])

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            from jinja2.exceptions import TemplateError

            def applied(turns: list[dict[str, str]]) -> str:
                return self.tokenizer.apply_chat_template(
                    turns,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )

            try:
                return applied(chat_history)
            except TemplateError:  # as HFLM does: some templates know no system turn
                return applied([turn for turn in chat_history if turn["role"] != "system"])

        def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
            del kwargs
            asked = [_continuation(context, own, self.max_length) for _, context, own in requests]
            found = self._likelihoods(asked)
            for (texts, _, _), answer in zip(requests, found, strict=True):
                if texts is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, answer)
            return found

        def _likelihoods(self, asked: Sequence[Continuation]) -> list[tuple[float, bool]]:
            keys = [request_key(self.identity, "loglikelihood", each) for each in asked]
            kept = self._kept(keys)
            missing = [n for n, key in enumerate(keys) if key not in kept]
            n_done = len(keys) - len(missing)
            self.on_requests(n_done, len(keys))

            def keep(found: dict[int, Likelihood]) -> None:
                nonlocal n_done
                n_done += len(found)
                self._keep({keys[missing[n]]: list(answer) for n, answer in found.items()})
                self.on_requests(n_done, len(keys))

            found = log_likelihoods(self.tried, [asked[n] for n in missing], self.limits, keep)
            kept |= {keys[n]: list(answer) for n, answer in zip(missing, found, strict=True)}
            return [(float(kept[key][0]), bool(kept[key][1])) for key in keys]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            del disable_tqdm
            windows: list[Continuation] = []
            owners: list[int] = []
            for number, request in enumerate(requests):
                pairs = get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
                parts = [_continuation(*make_disjoint_window(pair), self.max_length) for pair in pairs]
                windows += parts
                owners += [number] * len(parts)
            totals = [0.0] * len(requests)
            for owner, (log_prob, _) in zip(owners, self._likelihoods(windows), strict=True):
                totals[owner] += log_prob
            for request, total in zip(requests, totals, strict=True):
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            return totals

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            del disable_tqdm
            eos = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
            asked: list[GreedyRequest] = []
            settings: list[dict[str, Any]] = []
            for request in requests:
                text, given = request.args
                own: dict[str, Any] = dict(rules.normalize_gen_kwargs(given, self.max_gen_toks))
                stop = rules.handle_stop_sequences(own.pop("until", None), eos=eos)
                n_new = own.pop("max_gen_toks")
                room = self.max_length - n_new
                if room <= 0:
                    raise DataError(
                        f"max_gen_toks: {n_new} new tokens leave no room for a prompt in the model's context of "
                        f"{self.max_length}; set generation_kwargs.max_gen_toks lower."
                    )
                prompt = self.prompt_ids(text)[-room:]
                if not prompt:
                    raise DataError(
                        "a prompt has no tokens, so that nothing can be continued; check the task's doc_to_text."
                    )
                asked.append(GreedyRequest(prompt, tuple(stop), n_new))
                settings.append(own)
            answers = self._generated(asked, settings)
            for request, answer in zip(requests, answers, strict=True):
                self.cache_hook.add_partial("generate_until", request.args, answer)
            return answers

        def _generated(self, asked: Sequence[GreedyRequest], settings: Sequence[dict[str, Any]]) -> list[str]:
            keys = [
                request_key(self.identity, "generate_until", [*each, own])
                for each, own in zip(asked, settings, strict=True)
            ]
            samples = [bool(own.get("do_sample")) for own in settings]
            kept = self._kept([key for key, is_drawn in zip(keys, samples, strict=True) if not is_drawn])
            answers = {n: str(kept[key]) for n, key in enumerate(keys) if key in kept}
            self.on_requests(len(answers), len(keys))

            def keep(found: dict[int, list[int]]) -> None:
                texts = {n: self._text(ids, asked[n].stop) for n, ids in found.items()}
                answers.update(texts)
                self._keep({keys[n]: text for n, text in texts.items() if not samples[n]})
                self.on_requests(len(answers), len(keys))

            ours: list[int] = []
            others: dict[str, list[int]] = {}
            for n, own in enumerate(settings):
                if n in answers:
                    continue
                reason = why_not_greedy(self.tried.model.model, own)
                if reason:
                    others.setdefault(repr(sorted(own.items())), []).append(n)
                    self._note(f"answers are generated by transformers' own loop: {reason}")
                else:
                    ours.append(n)
            rule = Greedy(*_ends_and_penalty(self.tried.model.model, self.eot_token_id))
            generate_greedily(
                self.tried,
                self.tokenizer,
                [asked[n] for n in ours],
                rule,
                self.limits,
                lambda found: keep({ours[n]: ids for n, ids in found.items()}),
            )
            for numbers in others.values():
                continue_by_library(
                    self.tried.model,
                    self.tokenizer,
                    {n: asked[n] for n in numbers},
                    settings[numbers[0]],
                    self.limits,
                    keep,
                )
            return [answers[n] for n in range(len(keys))]

        def _text(self, token_ids: Sequence[int], stop: Sequence[str]) -> str:
            text = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
            return rules.postprocess_generated_text(text, list(stop), None)

        def _note(self, note: str) -> None:
            if note not in self.tried.notes:
                self.tried.notes.append(note)

        def _kept(self, keys: Sequence[str]) -> dict[str, Any]:
            return {} if self.store is None else self.store.get(keys)

        def _keep(self, answers: dict[str, Any]) -> None:
            if self.store is not None:
                self.store.put(answers)

    _made.append(HarnessModel)
    return HarnessModel


def _continuation(context: Sequence[int], own: Sequence[int], max_length: int) -> Continuation:
    """Context and continuation as the model reads them: cut at the left where they are too long."""
    if not context or not 0 < len(own) <= max_length:
        raise DataError(
            f"a request has {len(context)} tokens of context and {len(own)} to score; expected at least one of each, "
            f"and no more than the model's context of {max_length} to score. Check the task's choices and texts."
        )
    return Continuation([*context, *own][-(max_length + 1) :][:-1], list(own))


def _ends_and_penalty(model: nn.Module, eot_token_id: int) -> tuple[frozenset[int], float]:
    """Tokens that end an answer, and the repetition penalty that the model's own settings name."""
    config = getattr(model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return frozenset([*listed, eot_token_id]), float(getattr(config, "repetition_penalty", None) or 1.0)
