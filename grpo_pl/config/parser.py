"""The parser of command line and config files, which answers a mistake with one sentence."""

from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from grpo_pl.config import overlays  # noqa: F401 - patches the parser
from grpo_pl.config.places import Places
from grpo_pl.config.sentences import explain, known_options
from grpo_pl.system.refusal import fail


class Parser(LightningArgumentParser):
    """Answers a mistake with one sentence and the nearest right name, not with pages of usage."""

    written_by = ""
    """A half-sentence about config files that another version of grpo_pl wrote."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # the parser of a component inside: the outer one will name the whole key
            super().error(message, ex)
        fail(explain(message, known_options(self), ex) + self.written_by)

    @override
    def instantiate_classes(self, cfg: Any, **kwargs: Any) -> Any:
        """Build what a config names; a component's own messages name the key in full."""
        places = Places(cfg)
        return super().instantiate_classes(cfg, instantiators=[(places.build, object, True)], **kwargs)
