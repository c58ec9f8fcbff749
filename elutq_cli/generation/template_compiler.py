"""Jinja's compiler for chat templates: the code that it writes counts its work."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame, operators

from elutq_cli.generation.template_work import STEP, check_number

_Node = TypeVar("_Node", bound=nodes.Node)


class CountingCode(CodeGenerator):
    """Jinja's compiler; the code that it writes counts its statements, and the values that no method is asked for."""

    def blockvisit(self, body: Iterable[nodes.Node], frame: Frame) -> None:
        """Write statements, such as those in a loop, and how much work it is to run them once."""
        statements = list(body)
        n_expressions = sum(1 for node in statements for _ in node.find_all(nodes.Expr))
        constants = (data.data for node in statements for data in node.find_all(nodes.TemplateData))
        self.writeline(f"context.work.spend({STEP + STEP // 8 * n_expressions + sum(map(len, constants))})")
        super().blockvisit(statements, frame)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        """Write a loop; its condition counts, too."""
        if node.test is not None:
            step = nodes.Call(nodes.EnvironmentAttribute("step"), [nodes.ContextReference()], [], None, None)
            node.test = nodes.And(step, node.test).set_lineno(node.lineno)
        super().visit_For(node, frame)

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        """Write a constant."""
        if isinstance(node.value, int):
            check_number(node.value)
        super().visit_Const(node, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        """Write comparisons."""
        self.write("(environment.compared(context, ")
        self.visit(node.expr, frame)
        self.write(")")
        for operand in node.ops:
            self.visit(operand, frame)
        self.write(")")

    def visit_Operand(self, node: nodes.Operand, frame: Frame) -> None:
        """Write the right-hand side of a comparison."""
        self.write(f" {operators[node.op]} environment.compared(context, ")
        self.visit(node.expr, frame)
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """Write ``~``."""
        self.write("environment.join_texts(context, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        """Write a list."""
        self._count(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        """Write a mapping."""
        self._count(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        """Write a tuple, or several targets of an assignment."""
        if node.ctx == "load":
            self._count(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        """Write an element, or a slice, which is a copy."""
        if isinstance(node.arg, nodes.Slice):
            self._count(super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def _count(self, visit: Callable[[_Node, Frame], None], node: _Node, frame: Frame) -> None:
        self.write("environment.made(context, ")
        visit(node, frame)
        self.write(")")
