"""Components of a user who forgot something."""

from helpers.own_components import Bounded, Pull


class Silent(Bounded):
    """Takes tokens out and does not say so."""

    rejects = False


class Bare(Pull):
    """Gives the loss alone."""

    def term(self, scores, batch):
        return super().term(scores, batch).loss
