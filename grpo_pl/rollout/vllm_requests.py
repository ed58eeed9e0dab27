"""What is asked of vLLM for a rollout, and how its answers are read."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grpo_pl.models.loading import load_config
from grpo_pl.rollout.assembly import Response, token_ends
from grpo_pl.rollout.engine import Request, RolloutEngine, SamplingConfig, check_top_logprobs
from grpo_pl.rollout.top_logprobs import stacked
from grpo_pl.system.refusal import ArgumentError, name_of

if TYPE_CHECKING:
    from vllm import SamplingParams

MOST_LOGPROBS = 1024
"""Most log-probabilities of a token that vLLM is asked for."""
TIES = 2
"""Log-probabilities asked for, as a multiple of `top_k`: in bfloat16 dozens of tokens tie with the last."""


def check_support(sampling: SamplingConfig, engine: RolloutEngine) -> None:
    """Refuse truncated sampling whose support vLLM's log-probabilities do not show.

    Those of tokens that are cut off are -inf, so the likeliest `TIES * top_k` show which are kept. top_p
    alone bounds no number; vLLM's own `return_sampling_mask` needs its Model Runner V2, which refuses to
    start on a CPU without Triton (0.32.0).
    """
    vocabulary = min(MOST_LOGPROBS, load_config(engine.pretrained).get_text_config().vocab_size)
    check_top_logprobs(sampling, engine, most=vocabulary)
    most = vocabulary // TIES
    if sampling.truncates and not 0 < sampling.top_k <= most:
        raise ArgumentError(
            f"data.sampling.top_k={sampling.top_k} with top_p={sampling.top_p:g}: {name_of(engine)} says "
            f"which tokens it kept only among its likeliest, so it needs a top_k of 1 to {most}: set one, or "
            "take InProcessEngine"
        )


def sampling_params(request: Request) -> "SamplingParams":
    """How vLLM is to sample a request: by its own seed, and answered once, at its end."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = request.sampling
    kept: dict[str, Any] = {"logprobs": sampling.top_logprobs}
    if sampling.truncates:
        kept = {"top_p": sampling.top_p, "top_k": sampling.top_k, "flat_logprobs": True}
        kept["logprobs"] = TIES * sampling.top_k
    return SamplingParams(
        temperature=sampling.temperature,
        max_tokens=sampling.max_tokens,
        seed=request.seed,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **kept,
    )


def response(completion: Any, tokenizer: Any, sampling: SamplingConfig) -> Response:
    """One response of vLLM, with what its tokens were drawn from where sampling truncates."""
    token_ids, shown, supports = list(completion.token_ids), completion.logprobs, None
    if sampling.truncates:
        spans = list(zip(shown.start_indices, shown.end_indices, strict=True))
        logprobs = [shown.logprobs[start] for start, _ in spans]  # the chosen token stands first
        supports = [kept(shown.token_ids[a:b], shown.logprobs[a:b]) for a, b in spans]
    else:
        logprobs = [step[token].logprob for token, step in zip(token_ids, shown, strict=True)]
    asked = sampling.top_logprobs
    top = stacked([likeliest(step, asked) for step in shown]) if asked else None
    return Response(
        token_ids=token_ids,
        logprobs=logprobs,
        text=completion.text,
        truncated=completion.finish_reason == "length",
        token_ends=token_ends(tokenizer, token_ids, completion.text),
        candidates=supports,
        top=top,
    )


def likeliest(step: Mapping[int, Any], number: int) -> tuple[Tensor, Tensor]:
    """The ids of the likeliest tokens and their log-probabilities, without the sampled one below them."""
    first = sorted(step.items(), key=lambda pair: pair[1].rank)[:number]
    ids = torch.tensor([token for token, _ in first], dtype=torch.int32)
    return ids, torch.tensor([shown.logprob for _, shown in first])


def kept(token_ids: Sequence[int], logprobs: Sequence[float]) -> Tensor:
    """The tokens that are not cut off, each once."""
    possible = torch.tensor(logprobs) > -torch.inf
    return torch.tensor(sorted(set(torch.tensor(token_ids)[possible].tolist())), dtype=torch.int32)
