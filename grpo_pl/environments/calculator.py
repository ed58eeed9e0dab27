"""A calculator as a tool."""

import ast
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import final

from grpo_pl.environments.tools import Tools

_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@final
class Calculator(Tools):
    """One tool that calculates with whole numbers, exactly."""

    def calculate(self, expression: str) -> str:
        """Calculate an expression.

        Args:
            expression: Whole numbers with + - * / and parentheses, such as (12 + 7) * 3.
        """
        if len(expression) > 200:
            raise ValueError("longer than 200 characters")
        return str(_value(ast.parse(expression.strip(), mode="eval").body))


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATORS:
            return _OPERATORS[type(sign)](_value(left), _value(right))
    raise ValueError("only whole numbers, + - * / and parentheses are known")
