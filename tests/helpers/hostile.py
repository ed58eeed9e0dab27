"""Answers that are made to hang, crash or fill what reads them."""

import random
from collections.abc import Callable, Iterator

Make = Callable[[random.Random], str]
LATEX = r"""
\frac \sqrt { } ( ) [ ] \{ \} 1 2 10 0 x \pi i = < \le \in \cup + - * / ^ _ , . : ! % $ \$ | & \\ \left(
\right) \text{ \infty \log \binom{3}{2} \cdot \pm \neq \lfloor #### \0 answer is 1,234 0.5 \boxed{
\begin{pmatrix} \end{pmatrix} \int \sum_{i=1}^{9} \lim_{x\to0} \sin \mathrm{d} \overline \circ \degree
"""
CONTROL = [*map(chr, range(32)), "\x7f", "\u202e", "\u0301", "\ud800", "\ufeff", "\U0001f4a3", "٣", "²", "½"]


def nested(rng: random.Random) -> str:
    opening, closing = rng.choice(
        [("(", ")"), ("{", "}"), (r"\frac{1}{", "}"), (r"\sqrt{", "}"), (r"\left(", r"\right)"), ("x^{", "}"),
         (r"\boxed{", "}"), (r"\text{", "}"), (r"\{", r"\}"), (r"\frac{", "}{2}"), ("-", ""), ("|", "|")]
    )  # fmt: skip
    depth = rng.choice([3, 30, 300, 1500])
    return opening * depth + "1" + closing * (depth if rng.random() < 0.8 else depth - 1)


def explosive(rng: random.Random) -> str:
    n, m = rng.randint(2, 9), rng.choice([3, 9, 99, 10**4, 10**9])
    return rng.choice(
        ["{n}^{{{m}^{{{n}}}}}", "{m}!", "{m}!!", "\\binom{{{m}{m}}}{{{m}}}", "(x+1)^{{{m}}}", "{n}^{m}^{n}",
         "\\sum_{{i=1}}^{{{m}}} \\frac{{1}}{{i}}", "\\prod_{{i=1}}^{{{m}}} i", "\\int_0^{{{m}}} \\sin x dx",
         "\\sqrt[{m}]{{{n}}}", "0.{n}^{{-{m}}}", "\\log({n}^{{{m}}})", "1e{m}", "({n}^{{{m}}}) \\bmod {n}"]
    ).format(n=n, m=m)  # fmt: skip


def megabyte(rng: random.Random) -> str:
    piece = rng.choice(
        ["9", "1 ", "{", "}", "$", "\\boxed{", "\\boxed{1}", "\\", "#### 1\n", "-", "answer: ", "1,"]
    )
    return piece * (2**20 // len(piece))


def regular_expression_bomb(rng: random.Random) -> str:
    n = rng.choice([20, 200, 2000])
    return rng.choice(
        ["a" * n + "!", "1," * n + "x", "(a+)+" * (n // 10), "1 " * n + "x", "$" * n + "1", "1{,}" * n,
         "=" * n, "0" * n + ".", r"\text{" * n, "is " * n + "the answer is ", ", and " * n, "1/" * n + "2",
         "\\$" * n, "%" * n, "x=" * n + "1", r"\{1" + ",1" * n + r"\}", "(" + "1," * n + "1)"]
    )  # fmt: skip


def control(rng: random.Random) -> str:
    return "".join(rng.choices([*CONTROL, *"0123456789xy"], k=rng.choice([1, 10, 1000])))


def soup(rng: random.Random) -> str:
    return " ".join(rng.choices(LATEX.split(), k=rng.choice([3, 10, 40, 200])))


KINDS: tuple[Make, ...] = (nested, explosive, megabyte, regular_expression_bomb, control, soup)


def hostile_answers(count: int, seed: int) -> Iterator[str]:
    """Answers of all kinds in turn, with or without a mark that makes them the answer."""
    rng = random.Random(seed)
    for i in range(count):
        answer = KINDS[i % len(KINDS)](rng)
        yield rng.choice(["{}", r"\boxed{{{}}}", "#### {}", "$${}$$"]).format(answer)
