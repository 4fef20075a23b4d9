"""Stage 2 as a whole: train at the bottleneck, calibrate, and evaluate in ways that can fail.

What `lasa run` and `lasa train-interpreter` share. The layer is given; the scores of other layers never choose it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from lasa.data.corpora.audit import check_no_leaks
from lasa.data.prompts import Prompt
from lasa.data.sources import load_joined
from lasa.errors import ArtifactError, RecipeError
from lasa.files.artifacts import model_fingerprint, read_sealed, write_json
from lasa.files.record import check_recorded
from lasa.interpreter.answers import LabelledAnswer, add_answers, read_answers, split_answers
from lasa.interpreter.categories import add_categories
from lasa.interpreter.category_evaluation import evaluate_categories
from lasa.interpreter.coverage import measure_coverage
from lasa.interpreter.encoder import Encoder, load_encoder
from lasa.interpreter.evaluation import encoder_baseline, evaluate_interpreter, ngram_baseline
from lasa.interpreter.fit import fit_interpreter, new_config, read_for
from lasa.interpreter.generalisation import layer_sweep, leave_one_out, measure, perturbation_metrics
from lasa.interpreter.probe import InterpreterConfig, SafetySemanticInterpreter
from lasa.interpreter.settings import InterpreterSettings
from lasa.interpreter.tables import CALIBRATION, DEVELOPMENT, TRAIN, InterpreterTables, check_tables
from lasa.interpreter.training import LabelledStates
from lasa.models.hidden_states import StoredStates, read_hidden_states, read_to_folder
from lasa.models.layers import check_layer, num_layers
from lasa.models.positions import Position


@dataclass(frozen=True)
class Study:
    """A trained interpreter and everything that was measured.

    Attributes:
        interpreter: The interpreter at the bottleneck.
        ablations: Interpreters at other layers, by how the layer was asked for.
        results: `facts`, `audit`, `benchmarks` (by test table) and `generalisation`, as JSON.
    """

    interpreter: SafetySemanticInterpreter
    ablations: dict[str, SafetySemanticInterpreter]
    results: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write `interpreter/`, `interpreter.json` and, where there are ablations, `interpreter_at/<layer>/`."""
        self.interpreter.save_pretrained(folder / "interpreter")
        for asked, interpreter in self.ablations.items():
            interpreter.save_pretrained(folder / "interpreter_at" / asked)
        write_json(folder / "interpreter.json", self.results)


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
        check_recorded(bottleneck)
        found = read_sealed(bottleneck, by_hand=True)
        if position is not None:
            raise RecipeError("--position belongs to --layer; --bottleneck has a position of its own.")
        if "layers" not in found:
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
    section: InterpreterSettings,
    folder: Path,
    seed: int,
    ablations: Collection[str | int] = (),
    answers: Sequence[LabelledAnswer] = (),
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
        ablations: Other layers to train an interpreter at: numbers, `early` or `late`.
        answers: What the head for answers learns from; without any there is none.

    Raises:
        DataError: Training rows are asked again in a test table and the settings do not allow it, or the tables
            cannot train an interpreter.
        RecipeError: The settings do not fit the model or the tables.
    """
    check_tables(tables, section)
    early, late = min(section.early_layer, layer), num_layers(model)
    named_layers: dict[str | int, int] = {"early": early, "late": late}
    others = {str(one): check_layer(model, int(named_layers.get(one, one))) for one in ablations}
    needed = {check_layer(model, layer), early, late, *others.values()}
    layers = list(range(late + 1)) if section.all_layers else sorted(needed)
    named = tables.by_name()
    everything = [prompt for prompts in named.values() for prompt in prompts]
    stored = read_to_folder(model, tokenizer, everything, layers, folder / STATES, position)
    learnt = {"train": tables.train, "development": tables.development, "calibration": tables.calibration}
    config = new_config(
        model, tokenizer, layer, position, learnt,
        kind=section.kind, hidden=section.hidden, base_model=base_model, seed=seed,
    )  # fmt: skip
    encode = load_encoder(section.encoder) if section.encoder else None
    bench = _Bench(_LayerStates(stored, named), tables, config, section, seed, encode)

    interpreter, development = bench.fit(layer)
    read_train, read_development = bench.states.at(layer, TRAIN), bench.states.at(layer, DEVELOPMENT)
    interpreter, naming = add_categories(interpreter, read_train, read_development, section.category_errors)
    development["statements"] |= {"kind of harm": naming} if naming else {}
    if answers:
        asked = [prompt for prompts in tables.tests.values() for prompt in prompts]
        leaks = check_no_leaks([one.prompt for one in answers], asked, allow=section.leaks != "refuse")
        leaking = {leak.row for leak in leaks} if section.leaks == "drop" else set()
        unasked = [one for row, one in enumerate(answers) if row not in leaking]
        learnt_from, held = (
            read_answers(model, tokenizer, part, layer)
            for part in split_answers(unasked, section.answer_development_share, seed)
        )
        interpreter, stopping = add_answers(interpreter, learnt_from, held, section)
        development["statements"] |= {"answers": stopping}
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
    results: dict[str, Any] = {
        "audit": tables.audit.to_json(),
        "benchmarks": benchmarks,
        "generalisation": generalisation,
    }
    if section.parallel:
        sentences = read_for(interpreter, model, tokenizer, load_joined(section.parallel))
        labelled = bench.states.at(layer, headline) if headline and tables.tests[headline] else None
        coverage = measure_coverage(interpreter, sentences, labelled)
        grades = {code: one.grade for code, one in coverage.languages.items()}
        interpreter.config = replace(interpreter.config, coverage=grades)
        results["coverage"] = coverage.to_json()
    facts = {name: getattr(interpreter.config, name) for name in FACTS}
    results["facts"] = {"layer": layer, **facts, "development": development}
    return Study(interpreter, {asked: bench.fit(other)[0] for asked, other in others.items()}, results)


def development_states(tables: InterpreterTables, layer: int, folder: Path) -> Tensor | None:
    """The base model's states of the development table, as `study_interpreter` stored them; None where there are none.

    Args:
        tables: What was studied.
        layer: One that was read.
        folder: Hidden states lie in `folder/interpreter_states`.

    Returns:
        `[prompts, H]` float32.
    """
    if not tables.development or not (folder / STATES).is_dir():
        return None
    return _LayerStates(StoredStates(folder / STATES), tables.by_name()).at(layer, DEVELOPMENT).states


STATES = "interpreter_states"
GROUPS = ("languages", "seen", "unseen", "all")
FACTS = ("threshold", "language_thresholds", "controversial", "temperature", "parameters", "parameter_share")


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
    settings: InterpreterSettings
    seed: int
    encode: Encoder | None = None

    def fit(self, layer: int) -> tuple[SafetySemanticInterpreter, dict[str, Any]]:
        """An interpreter at a layer, and what its training and calibration say."""
        config = replace(self.config, read_point=replace(self.config.read_point, layer=layer))
        trained, calibrated = fit_interpreter(
            self.states.at(layer, TRAIN), self.states.at(layer, DEVELOPMENT), config, self.settings, self.settings,
            self.states.at(layer, CALIBRATION), self.seed,
        )  # fmt: skip
        return trained.interpreter, {**trained.to_json(), "statements": calibrated.statements}

    def measure(
        self, interpreter: SafetySemanticInterpreter, controls: Mapping[str, SafetySemanticInterpreter], test: str
    ) -> dict[str, Any]:
        """The interpreter, its controls and the n-gram baseline on a test table; empty where nothing is labelled."""
        prompts, seen = self.tables.tests[test], self.config.languages
        if not prompts:
            return {}
        layer = interpreter.config.read_point.layer
        found = evaluate_interpreter(interpreter, self.states.at(layer, test), seen)
        kinds = evaluate_categories(interpreter, self.states.at(layer, test), self.states.at(layer, TRAIN), seen)
        found |= {"categories": kinds} if kinds else {}
        for name, control in controls.items():
            layer = control.config.read_point.layer
            found[name] = {"layer": layer, **_groups(measure(control, self.states.at(layer, test), seen))}
        baseline = ngram_baseline(self.tables.train, prompts, seen, self.seed)
        found["ngram_baseline"] = _groups(baseline)
        if self.encode is not None:
            rival = encoder_baseline(self.encode, self.tables.train, prompts, seen, self.seed)
            found["encoder_baseline"] = {"encoder": self.settings.encoder, **_groups(rival)}
        return found

    def left_out(self) -> dict[str, Any]:
        """Leave one language, and one source, out."""
        layer = self.config.read_point.layer
        train, development = self.states.at(layer, TRAIN), self.states.at(layer, DEVELOPMENT)
        tests = [self.states.at(layer, name) for name in self.tables.tests]
        test = tests[0] if tests else train.rows([False] * len(train.prompts))
        options = (train, development, test, self.config, self.settings, self.settings, self.seed)
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

        return layer_sweep(at, layers, self.config, self.settings, self.settings, self.config.languages, self.seed)


def _groups(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in GROUPS}
