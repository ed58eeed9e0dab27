"""An environment of one's own for the real skyrl_gym."""

from typing import Any

from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput


class Echo(BaseTextEnv):
    """Opens with words of its own, pays as its config says."""

    def __init__(self, env_config: Any, extras: dict[str, Any]) -> None:
        super().__init__()
        self.pays, self.greeting = env_config.pays, extras["greeting"]

    def init(self, prompt: list[dict[str, str]]) -> tuple[list[dict[str, str]], dict[str, Any]]:
        return [*prompt, {"role": "user", "content": self.greeting}], {}

    def step(self, action: str) -> BaseTextEnvStepOutput:
        told = [{"role": "user", "content": action}]
        return BaseTextEnvStepOutput(observations=told, reward=self.pays, done=action == "bye", metadata={})
