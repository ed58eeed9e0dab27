"""Environments of the skyrl_gym library."""

from functools import partial
from typing import Any, final

from typing_extensions import override

from grpo_pl.environments.base import Environment
from grpo_pl.environments.tools import object_at
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Prompt, Said, Turn


@final
class SkyRLGym(Environment):
    """An environment in the shape of SkyRL's: `init(messages) -> (messages, info)` and `step(text) -> dict`.

    It is made for each episode, with the columns of the prompt's row as `extras`, to which the answer is
    added as `reward_spec.ground_truth`. Deviation: what the policy has said stays as it was sampled where
    the environment would have it shortened (`postprocessed_action`).

    Args:
        make: Its name in the library, such as `gsm8k_multi_turn`, or the import path of your own class.
        env_config: Its settings, as SkyRL reads them from its own config.
        extras: More columns, for all prompts, such as `{max_turns: 3}`.
    """

    def __init__(
        self, make: str, env_config: dict[str, Any] | None = None, extras: dict[str, Any] | None = None
    ) -> None:
        try:
            import skyrl_gym
            from omegaconf import OmegaConf
        except ImportError as error:
            raise ImportError(
                "SkyRLGym needs the package `skyrl-gym`: pip install 'grpo_pl[games]'"
            ) from error
        if "." not in make and make not in skyrl_gym.registry:
            raise ArgumentError(
                f"make={make}: skyrl_gym has no such environment; it has {', '.join(skyrl_gym.registry)}"
            )
        made = object_at(make, "make") if "." in make else partial(skyrl_gym.make, make)
        self._make = partial(made, env_config=OmegaConf.create(env_config or {}))
        self._extras = extras or {}

    @override
    def reset(self, prompt: Prompt, seed: int) -> Turn:
        answer = {"ground_truth": prompt.answer}
        row = {"reward_spec": answer, "reward_model": answer, "extra_info": {}} | prompt.metadata
        self._played = self._make(extras=row | self._extras)
        messages, _ = self._played.init([dict(message) for message in prompt.messages])
        return Turn(messages=[] if messages == prompt.messages else messages)

    @override
    def step(self, said: Said) -> Turn:
        told = self._played.step(said.raw)
        return Turn(messages=told["observations"], reward=float(told["reward"]), done=told["done"])

    @override
    def close(self) -> None:
        self._played.close()
