"""Files to fuzz readers with: rows that resemble what each reader knows, written in its format, sometimes damaged."""

import csv
import io
import json
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml
from hypothesis import assume
from hypothesis import strategies as st

from fuzz.targets import TARGETS

TEXTS = st.one_of(
    st.sampled_from(
        ("", " ", "en", "jw", "harmful", "1", "user", "A", "cause", "['a']", "[" * 99, "\ufeff", "NaN", "1e999")
    )
    | st.sampled_from(("../../etc/passwd", "file:///etc/passwd", "<script>alert(1)</script>", "=cmd()", "sample/test")),
    st.text(max_size=12),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
MESSAGES = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "x"]), TEXTS | st.none(), max_size=3), max_size=3
)
NESTED_NAMES = [
    "sample_id",
    "language",
    "subject",
    "cultural_sensitivity_label",
    "question",
    "option_a",
    "role",
    "content",
]
CELLS = st.one_of(
    SCALARS,
    MESSAGES,
    st.recursive(
        SCALARS,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(NESTED_NAMES) | st.text(max_size=4), inner, max_size=4)
        ),
        max_leaves=8,
    ),
)


def tables(columns: tuple[str, ...]) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Rows that have most of the columns, and ragged ones."""
    names = st.lists(st.sampled_from(columns) | st.text(max_size=5), min_size=1, max_size=8, unique=True)
    full = st.just(list(columns))

    def rows(header: list[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
        return st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(header, CELLS)), max_size=3) | st.lists(
            st.fixed_dictionaries(dict.fromkeys(header, CELLS)), min_size=1, max_size=3
        )

    return (full | names).flatmap(rows)


def encode(suffix, rows):
    """Rows as a file of this format, as a program that is not ours may write them."""
    if suffix == ".parquet":
        sink = io.BytesIO()
        try:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        except (pyarrow.ArrowException, ValueError, TypeError, OverflowError):
            assume(False)  # cells of one column of a Parquet file are of one type
        return sink.getvalue()
    if suffix == ".json":
        return json.dumps(rows).encode()
    if suffix == ".jsonl":
        return "\n".join(json.dumps(row) for row in rows).encode()
    text = io.StringIO()
    names = list({name: None for row in rows for name in row})
    writer = csv.DictWriter(text, names, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


def damage(content, places):
    """Flip a byte at each place, and cut the file where a place lies behind its end."""
    damaged = bytearray(content)
    for place, value in places:
        if place < len(damaged):
            damaged[place] ^= value
        else:
            damaged = damaged[: place - len(damaged)]
    return bytes(damaged)


def places():
    return st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 255)), max_size=3)


def any_file(name):
    """Files for a target: rows of its columns in its format, sometimes damaged."""
    target = TARGETS[name]
    if name == "recipe":
        return recipes()
    suffix = "." + target.file.rpartition(".")[2]
    if not target.columns:
        lines = st.lists(st.lists(TEXTS, min_size=1, max_size=3).map("\t".join), max_size=4)
        return st.builds(damage, lines.map("\n".join).map(lambda t: t.encode("utf-8", "surrogatepass")), places())
    return st.builds(damage, tables(target.columns).map(lambda rows: encode(suffix, rows)), places())


def recipes():
    """YAML texts that resemble a recipe."""
    names = st.sampled_from(
        ["model", "path", "seed", "seen_languages", "layer_search", "prompts", "interpreter", "train", "alignment",
         "preferences", "systems", "lasa", "method", "sweep", "evaluation", "benchmarks", "layer", "epochs", "<<"]
    ) | TEXTS  # fmt: skip
    values = st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5),
        max_leaves=20,
    )
    documents = st.dictionaries(names, values, max_size=8).map(lambda value: yaml.safe_dump(value, allow_unicode=True))
    pieces = ["&a [", "*a", "]", "a: &b {", "<<: *b", "}", "? ", "- ", "\n", ": ", "|", ">", "---", "%YAML 9.9", "\t"]
    tags = ["!!python/object/apply:os.system [x]", "!!timestamp 9-9-9", "!!int 0x", "!!binary x", "1:1:1", "2001-99-99"]
    snippets = st.lists(st.sampled_from(pieces + tags) | TEXTS, max_size=8).map("".join)
    return st.builds(damage, (documents | snippets).map(lambda t: t.encode("utf-8", "surrogatepass")), places())
