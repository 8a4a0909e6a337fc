"""The metrics that a PromQL expression reads, from its syntax tree."""

import promql_parser


def selectors(expression):
    """(metric, {label: wanted value}) of every selector; matchers other than = have no wanted value."""
    found = []

    def visit(node):
        if isinstance(node, promql_parser.VectorSelector):
            equal = {m.name: m.value for m in node.matchers.matchers if m.op == promql_parser.MatchOp.Equal}
            found.append((node.name, equal))
            return
        for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
            child = getattr(node, name, None)
            if isinstance(child, promql_parser.Expr):
                visit(child)
        for child in getattr(node, "args", ()):
            visit(child)

    visit(promql_parser.parse(expression))
    return found
