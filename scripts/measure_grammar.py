"""What constrained decoding costs: tokens per second with a schema against without, in alternated pairs.

Both texts have the same number of tokens, none of which ends them; the ratio of a pair is of runs next to each other.

    python scripts/measure_grammar.py model.gguf --pairs 15
"""

import argparse
import statistics

import elutq

SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 24},
            "age": {"type": "integer"},
            "note": {"type": "string"},
        },
        "required": ["name", "age", "note"],
        "additionalProperties": False,
    },
    "minItems": 1000,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    with elutq.load(options.model, ctx_size=options.tokens + 64, threads=options.threads) as model:
        free, bound = [], []
        for pair in range(options.pairs + 1):
            for speeds, schema in ((free, None), (bound, SCHEMA)):
                model.clear()
                text = elutq.generate(
                    model,
                    "A list of people, as JSON:",
                    options.tokens,
                    ignore_eos=True,
                    json_schema=schema,
                    seed=pair,
                )
                text.read()
                if len(text.tokens) != options.tokens:
                    raise SystemExit(f"the text has {len(text.tokens)} tokens, not {options.tokens}")
                if pair:  # the first one warms up
                    speeds.append(text.tokens_per_second)
    ratios = sorted(with_schema / without for with_schema, without in zip(bound, free, strict=True))
    print(f"without a schema {statistics.median(free):.0f} tokens/s, with one {statistics.median(bound):.0f}")
    print(f"ratio of pairs: median {statistics.median(ratios):.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f}")


if __name__ == "__main__":
    main()
