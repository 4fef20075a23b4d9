"""Stage 2 as a whole: audit the tables, train at the bottleneck, calibrate, and evaluate in ways that can fail.

What `lasa run` and `lasa train-interpreter` share. The layer is given; the scores of other layers never choose it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from lasa.artifacts import fingerprint, model_fingerprint, provenance, read_json, write_json
from lasa.corpora.audit import Count, Leak, check_no_leaks, count_prompts, find_leaks, near_duplicates
from lasa.errors import ArtifactError, DataError, RecipeError
from lasa.evaluation.perturbations import perturbed
from lasa.hidden_states import Position, ReadPoint, StoredStates, read_hidden_states, read_to_folder
from lasa.interpreter import InterpreterConfig, SafetySemanticInterpreter, hidden_width
from lasa.interpreter_calibration import CalibrationOptions
from lasa.interpreter_evaluation import evaluate_interpreter, ngram_baseline
from lasa.interpreter_generalisation import fit_interpreter, layer_sweep, leave_one_out, measure, perturbation_metrics
from lasa.interpreter_training import LabelledStates, TrainingOptions, split_by_query
from lasa.layers import check_layer, hidden_size, num_layers
from lasa.models import num_parameters
from lasa.prompts import Prompt
from lasa.recipe import InterpreterSection
from lasa.rendering import template_fingerprint
from lasa.sources import load_prompts


@dataclass(frozen=True)
class Audit:
    """What the tables hold, and what training and evaluation have in common.

    Attributes:
        counts: By table, its prompts by language, source and label.
        duplicates: Training and development prompts whose text is in a test table: `exact` and `normalised`.
        leaks: Training and development rows whose question a test table asks, however worded.
    """

    counts: dict[str, list[Count]]
    duplicates: dict[str, int]
    leaks: list[Leak]

    def to_json(self) -> dict[str, Any]:
        """Counts as rows; leaks counted by kind, source and test source."""
        leaks = Counter((leak.kind, leak.source, leak.evaluation_source) for leak in self.leaks)
        return {
            "counts": [{"table": name, **asdict(count)} for name, counts in self.counts.items() for count in counts],
            "duplicates": self.duplicates,
            "leaks": [
                {"kind": kind, "source": source, "evaluation_source": evaluated, "rows": rows}
                for (kind, source, evaluated), rows in sorted(leaks.items())
            ],
        }


@dataclass(frozen=True)
class InterpreterTables:
    """The labelled prompts of stage 2.

    Attributes:
        train: In the seen languages; perturbed copies included.
        development: In the seen languages, other queries.
        calibration: More benign prompts for thresholds, in any language.
        tests: Held-out tables by name, in any language; the first is the headline.
        audit: What they hold.
    """

    train: list[Prompt]
    development: list[Prompt]
    calibration: list[Prompt]
    tests: dict[str, list[Prompt]]
    audit: Audit


@dataclass(frozen=True)
class Study:
    """A trained interpreter and everything that was measured.

    Attributes:
        interpreter: The interpreter at the bottleneck.
        results: `facts`, `audit`, `benchmarks` (by test table) and `generalisation`, as JSON.
    """

    interpreter: SafetySemanticInterpreter
    results: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write `interpreter/` and `interpreter.json`."""
        self.interpreter.save_pretrained(folder / "interpreter")
        write_json(folder / "interpreter.json", self.results)


def load_tables(
    section: InterpreterSection, seen_languages: Sequence[str], tests: Mapping[str, str], seed: int
) -> InterpreterTables:
    """Load, split and audit the tables of stage 2.

    Args:
        section: Sources, development share, perturbed copies.
        seen_languages: Languages to train on; empty for all that the training sources have.
        tests: Sources of the test tables by name.
        seed: Of the split and the perturbations.

    Raises:
        DataError: A source is unreadable or has no labelled prompt in the seen languages.
    """
    train = _labelled(section.train, seen_languages)
    if section.development:
        development = _labelled(section.development, seen_languages)
    else:
        kept, held = split_by_query(train, section.development_share, seed)
        train, development = _where(train, kept), _where(train, held)
    held_out = {name: [p for p in load_prompts(source) if p.harmful is not None] for name, source in tests.items()}
    asked = [prompt for prompts in held_out.values() for prompt in prompts]
    calibration = [p for source in section.calibration for p in load_prompts(source) if p.harmful is False]
    learnt = [*train, *development, *calibration]
    audit = Audit(
        {name: count_prompts(prompts) for name, prompts in _named(train, development, calibration, held_out).items()},
        dict(Counter(duplicate.match for duplicate in near_duplicates(learnt, asked))),
        find_leaks(learnt, asked),
    )
    copies = [copy for change in section.perturbed_copies for copy in perturbed(train, change, seed)]
    return InterpreterTables([*train, *copies], development, calibration, held_out, audit)


def read_point_of(model: Any, bottleneck: Path | None, layer: int | None, position: str | None) -> tuple[int, Position]:
    """Layer and token position to read: those of a `bottleneck.json`, or as given.

    Args:
        model: The base model.
        bottleneck: Written by `lasa locate` or a run.
        layer: The layer, where there is no such file.
        position: Token position, with `layer`; `last` by default.

    Raises:
        RecipeError: Neither or both are given, or there is no such position.
        ArtifactError: The file is damaged, is of another model, or found no bottleneck.
    """
    if (bottleneck is None) == (layer is None):
        raise RecipeError("Give either --bottleneck (of `lasa locate`) or --layer.")
    if bottleneck is not None:
        found = read_json(bottleneck)
        if position is not None:
            raise RecipeError("--position belongs to --layer; --bottleneck has a position of its own.")
        if not isinstance(found, dict) or "layers" not in found:
            raise ArtifactError(f"{bottleneck} is not a bottleneck.json. Write one with `lasa locate`.")
        layer, position = found.get("used_layer", found.get("layer")), found.get("position")
        if layer is None:
            raise ArtifactError(f"{bottleneck}: {found.get('verdict', 'no bottleneck was found')} Choose with --layer.")
        base = found.get("provenance", {}).get("fingerprint")
        if base not in (None, model_fingerprint(model)):
            raise ArtifactError(f"{bottleneck} was found on another model. Run `lasa locate` on this one.")
    where = position or "last"
    if where not in get_args(Position):
        raise RecipeError(f"There is no token position {where!r}; choose one of {', '.join(get_args(Position))}.")
    return check_layer(model, int(layer or 0)), where  # type: ignore[return-value]


def study_interpreter(
    model: Any,
    tokenizer: Any,
    base_model: str,
    layer: int,
    position: Position,
    tables: InterpreterTables,
    section: InterpreterSection,
    folder: Path,
    seed: int,
) -> Study:
    """Train the interpreter and its controls, calibrate them, and measure what they read and generalise to.

    Args:
        model: The base model.
        tokenizer: Its tokenizer.
        base_model: Its name, for people.
        layer: The semantic bottleneck.
        position: Token position to read.
        tables: From `load_tables`.
        section: Settings.
        folder: Hidden states are stored in `folder/interpreter_states`.
        seed: Of training and perturbations.

    Raises:
        DataError: Training rows are asked again in a test table and the settings do not allow it, or the tables
            cannot train an interpreter.
        RecipeError: The settings do not fit the model or the tables.
    """
    _check_tables(tables, section)
    early, late = min(section.early_layer, layer), num_layers(model)
    layers = list(range(late + 1)) if section.all_layers else sorted({check_layer(model, layer), early, late})
    named = _named(tables.train, tables.development, tables.calibration, tables.tests)
    everything = [prompt for prompts in named.values() for prompt in prompts]
    stored = read_to_folder(model, tokenizer, everything, layers, folder / "interpreter_states", position)
    training = TrainingOptions(
        learning_rate=section.learning_rate,
        epochs=section.epochs,
        noise=section.noise,
        seeds=section.seeds,
        seed=seed,
    )
    config = _config(model, tokenizer, base_model, layer, position, tables, section, seed)
    bench = _Bench(_LayerStates(stored, named), tables, config, training, calibration_options(section))

    interpreter, development = bench.fit(layer)
    controls = {"early_layer": bench.fit(early)[0], "late_layer": bench.fit(late)[0]}
    benchmarks = {name: bench.measure(interpreter, controls, name) for name in tables.tests}
    generalisation = bench.left_out()
    headline = next(iter(tables.tests), None)
    if headline is not None and tables.tests[headline]:

        def read(prompts: Sequence[Prompt]) -> Tensor:
            return read_hidden_states(model, tokenizer, prompts, [layer], position)[:, 0]

        test = bench.states.at(layer, headline)
        generalisation["perturbations"] = perturbation_metrics(
            interpreter, read, test, section.perturbations, config.languages, seed
        )
    if section.all_layers:
        generalisation["layers"] = bench.sweep(layers)
    measured = {k: v for k, v in benchmarks.get(headline or "", {}).items() if k in GROUPS}
    interpreter.config = replace(interpreter.config, metrics={"development": development, **measured})
    facts = {name: getattr(interpreter.config, name) for name in FACTS}
    results = {
        "facts": {"layer": layer, **facts, "development": development},
        "audit": tables.audit.to_json(),
        "benchmarks": benchmarks,
        "generalisation": generalisation,
    }
    return Study(interpreter, results)


def calibration_options(section: InterpreterSection) -> CalibrationOptions:
    """What the settings ask to be fitted besides the temperature."""
    return CalibrationOptions(section.false_refusals, section.per_language, section.controversial_misses)


GROUPS = ("languages", "seen", "unseen", "all")
FACTS = ("threshold", "language_thresholds", "controversial", "temperature", "parameters", "parameter_share")
TRAIN, DEVELOPMENT, CALIBRATION = "training data", "development data", "calibration data"
"""Names of the tables that are not tests."""


class _LayerStates:
    """The stored states of all tables, a layer and a table at a time; the last layer used is kept in memory."""

    def __init__(self, stored: StoredStates, tables: Mapping[str, Sequence[Prompt]]) -> None:
        self.stored, self.tables = stored, tables
        self.layer: int | None = None

    def at(self, layer: int, table: str) -> LabelledStates:
        if layer != self.layer:
            self.layer, self.states = layer, self.stored.layer(layer)
        start = 0
        for name, prompts in self.tables.items():
            if name == table:
                return LabelledStates(self.states[start : start + len(prompts)], prompts)
            start += len(prompts)
        raise KeyError(table)


@dataclass(frozen=True)
class _Bench:
    """One set of tables, states and settings, on which interpreters at any layer are trained and measured."""

    states: _LayerStates
    tables: InterpreterTables
    config: InterpreterConfig
    training: TrainingOptions
    calibration: CalibrationOptions

    def fit(self, layer: int) -> tuple[SafetySemanticInterpreter, dict[str, Any]]:
        """An interpreter at a layer, and what its training and calibration say."""
        config = replace(self.config, read_point=replace(self.config.read_point, layer=layer))
        trained, calibrated = fit_interpreter(
            self.states.at(layer, TRAIN), self.states.at(layer, DEVELOPMENT), config, self.training, self.calibration,
            self.states.at(layer, CALIBRATION),
        )  # fmt: skip
        return trained.interpreter, {**trained.to_json(), "statements": calibrated.statements}

    def measure(
        self, interpreter: SafetySemanticInterpreter, controls: Mapping[str, SafetySemanticInterpreter], test: str
    ) -> dict[str, Any]:
        """The interpreter, its controls and the n-gram baseline on a test table; empty where nothing is labelled."""
        prompts, seen = self.tables.tests[test], self.config.languages
        if not prompts:
            return {}
        found = evaluate_interpreter(interpreter, self.states.at(interpreter.config.read_point.layer, test), seen)
        for name, control in controls.items():
            layer = control.config.read_point.layer
            found[name] = {"layer": layer, **_groups(measure(control, self.states.at(layer, test), seen))}
        baseline = ngram_baseline(self.tables.train, prompts, seen, self.training.seed)
        return {**found, "ngram_baseline": _groups(baseline)}

    def left_out(self) -> dict[str, Any]:
        """Leave one language, and one source, out."""
        layer = self.config.read_point.layer
        train, development = self.states.at(layer, TRAIN), self.states.at(layer, DEVELOPMENT)
        tests = [self.states.at(layer, name) for name in self.tables.tests]
        test = tests[0] if tests else train.rows([False] * len(train.prompts))
        options = (train, development, test, self.config, self.training, self.calibration)
        return {
            "left_out_languages": leave_one_out("language", *options),
            "left_out_sources": leave_one_out("source", *options),
        }

    def sweep(self, layers: Sequence[int]) -> list[dict[str, Any]]:
        """Every layer on the headline test table."""
        headline = next(iter(self.tables.tests))

        def at(layer: int) -> tuple[LabelledStates, LabelledStates, LabelledStates, LabelledStates]:
            train, development, test, benign = (
                self.states.at(layer, name) for name in (TRAIN, DEVELOPMENT, headline, CALIBRATION)
            )
            return train, development, test, benign

        return layer_sweep(at, layers, self.config, self.training, self.calibration, self.config.languages)


def _check_tables(tables: InterpreterTables, section: InterpreterSection) -> None:
    if tables.audit.leaks and not section.allow_leaks:
        asked = [prompt for prompts in tables.tests.values() for prompt in prompts]
        check_no_leaks([*tables.train, *tables.development, *tables.calibration], asked)
    for name, prompts in (("development", tables.development), ("calibration", tables.calibration)):
        same = near_duplicates(prompts, tables.train)
        if same:
            raise DataError(
                f"{len(same)} {name} prompts are in the training data as well (first: query "
                f"{prompts[same[0].left].query_id!r}); early stopping or thresholds would be fitted on known prompts. "
                "Remove them from either."
            )
    if section.all_layers and not next(iter(tables.tests.values()), []):
        raise RecipeError("A sweep over all layers needs labelled test prompts to measure each layer on.")


def _config(
    model: Any,
    tokenizer: Any,
    base_model: str,
    layer: int,
    position: Position,
    tables: InterpreterTables,
    section: InterpreterSection,
    seed: int,
) -> InterpreterConfig:
    width, base = hidden_size(model), num_parameters(model)
    config = InterpreterConfig(
        ReadPoint(layer, position, template_fingerprint(tokenizer)),
        width,
        hidden_width(section.kind, width, base, section.hidden),
        base_model=base_model,
        base_fingerprint=model_fingerprint(model),
        languages=tuple(sorted({p.language for p in tables.train})),
        data={
            "train": fingerprint([p.to_json() for p in tables.train]),
            "development": fingerprint([p.to_json() for p in tables.development]),
            **({"calibration": fingerprint([p.to_json() for p in tables.calibration])} if tables.calibration else {}),
        },
        provenance=provenance(seed=seed),
    )
    size = SafetySemanticInterpreter(config).num_parameters()
    return replace(config, parameters=size, parameter_share=size / base)


def _labelled(sources: Sequence[str], languages: Sequence[str]) -> list[Prompt]:
    wanted = [p for source in sources for p in load_prompts(source) if not languages or p.language in languages]
    found = [p for p in wanted if p.harmful is not None]
    if not found:
        where = f" in {', '.join(languages)}" if languages else ""
        raise DataError(f"{', '.join(sources)}: no prompt labelled harmful or benign{where}.")
    return found


def _named(
    train: Sequence[Prompt],
    development: Sequence[Prompt],
    calibration: Sequence[Prompt],
    tests: Mapping[str, Sequence[Prompt]],
) -> dict[str, Sequence[Prompt]]:
    clash = {TRAIN, DEVELOPMENT, CALIBRATION} & set(tests)
    if clash:
        raise RecipeError(f"A test table cannot be called {clash.pop()!r}.")
    return {TRAIN: train, DEVELOPMENT: development, CALIBRATION: calibration, **tests}


def _where(prompts: Sequence[Prompt], keep: Sequence[bool]) -> list[Prompt]:
    return [prompt for prompt, kept in zip(prompts, keep, strict=True) if kept]


def _groups(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in ("seen", "unseen", "all")}
