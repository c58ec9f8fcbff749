"""Random JSON schemas whose texts are short, for tests."""

from hypothesis import strategies as st

NAMES = st.sampled_from(["a", "b", "name", "käse", "a b", 'q"uote', "back\\slash", ""])


def _strings():
    lengths = st.tuples(st.integers(0, 4), st.integers(0, 6)).map(
        lambda of: {"type": "string", "minLength": min(of), "maxLength": max(of)}
    )
    others = st.sampled_from(
        [
            {"type": "string", "pattern": "^[a-c]{2,5}$"},
            {"type": "string", "pattern": r"^\d{3}-[A-Z]+x$", "maxLength": 9},
            {"type": "string", "format": "date"},
            {"type": "string", "format": "uuid"},
            {"enum": ["yes", "no", 'a "quoted" word', "größer", 3, None, [1, {"b": True}]]},
            {"const": {"fixed": [1.5, "two"]}},
        ]
    )
    return lengths | others


def _numbers():
    bounds = st.tuples(st.integers(-1000, 1000), st.integers(0, 500))
    integers = bounds.map(lambda of: {"type": "integer", "minimum": of[0], "maximum": sum(of)})
    exclusive = bounds.map(lambda of: {"type": "integer", "exclusiveMinimum": of[0], "exclusiveMaximum": sum(of) + 2})
    return integers | exclusive | st.just({"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 99})


def _objects(inner):
    @st.composite
    def build(draw):
        properties = draw(st.dictionaries(NAMES, inner, max_size=4))
        required = [name for name in properties if draw(st.booleans())]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    return build()


def _arrays(inner):
    lengths = st.tuples(st.integers(0, 2), st.integers(0, 2))
    plain = st.tuples(inner, lengths).map(
        lambda of: {"type": "array", "items": of[0], "minItems": of[1][0], "maxItems": sum(of[1])}
    )
    tuples = st.lists(inner, min_size=1, max_size=3).map(
        lambda of: {"type": "array", "prefixItems": of, "items": False, "minItems": len(of)}
    )
    return plain | tuples


SCHEMAS = st.recursive(
    _strings() | _numbers() | st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["boolean", "null"]}]),
    lambda inner: (
        _objects(inner) | _arrays(inner) | st.lists(inner, min_size=1, max_size=3).map(lambda of: {"anyOf": of})
    ),
    max_leaves=6,
)
