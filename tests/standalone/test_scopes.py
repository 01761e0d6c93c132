"""Which names in a statement are names of its module."""

import ast

import pytest

from diffusers_ucgm.standalone.scopes import global_names


def found(source, **options):
    (statement,) = ast.parse(source).body
    return [each.node.id for each in global_names(statement, **options)]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("A = B + C", ["A", "B", "C"]),
        ("def f(a, *b, c=D, **e): return a + b + c + e + g", ["D", "g"]),
        ("def f(a: A) -> B:\n    c = a\n    for d, (e, *h) in c: pass\n    return d, e, h, i", ["A", "B", "i"]),
        ("def f():\n    global a\n    a = 1", ["a"]),
        ("def f():\n    def g(): return x\n    x = 1\n    return g", []),
        ("def f(): return [a for a in b if a]", ["b"]),
        ("def f(): return {a: b for a, b in c for d in a}", ["c"]),
        ("X = [x for x in x]", ["X", "x"]),
        ("f = lambda a, b=c: a + b + d", ["f", "c", "d"]),
        ("class A(B, metaclass=C):\n    d = 1\n    e = d\n    def f(self): return d", ["B", "C", "d"]),
        ("def f():\n    if (a := b): return a", ["b"]),
        ("def f(): return [c for b in d if (c := b)], c", ["d"]),
        ("def f():\n    try: pass\n    except A as b: raise b", ["A"]),
        ("def f():\n    with a as b: return b", ["a"]),
        ("def f():\n    import a.b\n    from c import d as e\n    return a, d, e", ["d"]),
        ("def f(a):\n    match a:\n        case {'b': c, **d}: return c, d\n        case [*e]: return e, g", ["g"]),
        ("@a\nasync def f(b): return await b", ["a"]),
    ],
)
def test_local_names_are_left_out(source, names):
    assert found(source) == names


def test_names_that_a_function_imports_from_the_same_file_count_as_its_modules():
    source = "def f():\n    from .a import b\n    return b"
    assert found(source) == []
    assert found(source, imported=frozenset({"b"})) == ["b"]


def test_a_place_knows_its_attribute_and_the_local_names():
    (statement,) = ast.parse("def f(a): return b.c + d").body
    first, second = global_names(statement)
    assert (first.node.id, first.attribute.attr, first.hidden) == ("b", "c", frozenset({"a"}))
    assert (second.node.id, second.attribute) == ("d", None)
