"""The chapters of a report about the inside of the model: the semantic bottleneck and the interpreter."""

from lasa.report import figures, interpreter_figures
from lasa.report import interpreter_tables as tables
from lasa.report import layer_tables as layers
from lasa.report.run_folder import Document, Run
from lasa.report.sections import Illustration, Save, Section
from lasa.report.training_tables import drift_table
from lasa.report.values import GROUPS, percent, rates


def bottleneck(run: Run, save: Save) -> list[Section]:
    """The layer search."""
    rows = layers.layer_rows(run.bottleneck)
    if not rows:
        return []
    chosen, spread = run.bottleneck.get("layer"), run.bottleneck.get("layer_interval")
    section = Section("bottleneck", "Semantic bottleneck")
    section.text.append(
        "Translations of one question should lie close together where the model works with meaning, and prompts of one "
        "language where it works with words. The bottleneck is the layer where meaning outweighs language most."
    )
    if run.bottleneck.get("verdict"):
        section.text.append(str(run.bottleneck["verdict"]))
    named = f"Layer {chosen} is marked" if chosen is not None else "No layer is marked, since none could be named"
    if spread and chosen is not None:
        named += f"; the green area is its 95 % interval, layers {spread[0]} to {spread[1]}"
    files = save(
        figures.layer_curves(rows, chosen, spread),
        rows,
        name="layer_curves",
        description=f"Silhouette by meaning and by language over {len(rows)} layers. {named}.",
    )
    caption = f"Silhouette of each layer with 95 % bands. Good: a clear interior peak of the difference. {named}."
    section.illustrations.append(Illustration(files, caption))
    if run.bottleneck.get("used_layer", chosen) != chosen:
        section.text.append(f"The recipe chose layer {run.bottleneck['used_layer']} for the interpreter instead.")
    section.folded.append(layers.layer_table(rows, chosen))
    for position, other in (run.bottleneck.get("also") or {}).items():
        rows = layers.layer_rows(other)
        files = save(
            figures.layer_curves(rows, other.get("layer"), other.get("layer_interval")),
            rows,
            name=f"layer_curves_{position}",
            description=f"The same curves, read at the position {position}.",
        )
        section.illustrations.append(Illustration(files, f"Read at {position}, for information. {other['verdict']}"))
    return [section]


def interpreter(run: Run, save: Save) -> list[Section]:
    """The interpreter beside its baselines, its calibration and its scores."""
    found = run.interpreter
    probes = tables.probes_of(found)
    if not found:
        return []
    section = Section("interpreter", "Interpreter", [_facts(found)])
    cells = rates(probes, GROUPS, ["balanced_accuracy"])
    if cells:
        files = save(
            interpreter_figures.probe_accuracy(cells), [cell.row() for cell in cells], name="interpreter_accuracy",
            description="Balanced accuracy of the interpreter and its baselines on seen and unseen languages.",
        )  # fmt: skip
        caption = (
            "Good: the interpreter lies right of the other probes and of the n-gram baseline, above all on unseen "
            "languages. Lines: 95 % interval."
        )
        section.illustrations.append(Illustration(files, caption))
    if probes:
        section.folded.append(tables.probe_table(found, run.seen_languages))
    calibration = found.get("calibration") or {}
    if calibration.get("reliability"):
        rows = calibration["reliability"]
        files = save(
            interpreter_figures.reliability_diagram(rows), rows, name="reliability",
            description="Share of harmful prompts against the probability given.",
        )  # fmt: skip
        error = calibration.get("ece")
        caption = "Reliability. Good: the points lie on the dotted diagonal, so that a probability means what it says."
        caption += f" Expected calibration error {percent(error)} (lower is better)." if error is not None else ""
        section.illustrations.append(Illustration(files, caption))
        section.folded.append(tables.reliability_table(rows))
    bins = tables.histogram_rows(found.get("score_histogram") or {})
    if bins:
        figure = interpreter_figures.score_histogram(bins, found.get("threshold"))
        files = save(figure, bins, name="score_histogram", description="Scores of harmful and of benign prompts.")
        caption = "Scores. Good: benign prompts on the left, harmful ones on the right, few in between."
        section.illustrations.append(Illustration(files, caption))
    training = tables.training_table(found)
    section.folded += [training] if training else []
    return [section]


def generalisation(run: Run, save: Save) -> list[Section]:
    """What the interpreter generalises to: changed prompts, what was left out of its training, other layers."""
    found = run.interpreter
    section = Section("generalisation", "What the interpreter generalises to")
    cells = tables.perturbation_cells(found)
    if cells:
        files = save(
            interpreter_figures.probe_accuracy(cells), [cell.row() for cell in cells], name="perturbations",
            description="Balanced accuracy of the interpreter on changed prompts and on the same prompts as written.",
        )  # fmt: skip
        caption = (
            "The interpreter on prompts that were changed without changing what they ask. Good: both marks lie close "
            "together and on the right. Lines: 95 % interval."
        )
        section.illustrations.append(Illustration(files, caption))
    swept = layers.probe_layer_rows(found)
    if swept:
        files = save(
            interpreter_figures.probe_by_layer(swept, found.get("layer")), swept, name="interpreter_by_layer",
            description="Balanced accuracy of the same interpreter trained at every layer.",
        )  # fmt: skip
        caption = (
            "The same interpreter trained at every layer, for information only: the layer in use is the bottleneck's, "
            "never the one that scores best here. Bands: 95 % interval."
        )
        section.illustrations.append(Illustration(files, caption))
    covered = tables.coverage_table(found)
    section.tables += [covered] if covered else []
    left_out = tables.left_out_table(found)
    section.tables += [left_out] if left_out else []
    changed = tables.perturbation_table(found)
    section.folded += [changed] if changed else []
    return [section] if section.illustrations or section.tables or section.folded else []


def drift(run: Run, _save: Save) -> list[Section]:
    """What alignment did to the interpreter's decisions."""
    table = drift_table(run)
    if table is None:
        return []
    section = Section("drift", "What alignment did to the interpreter", tables=[table])
    section.text.append(
        "Training moves the hidden states that the interpreter reads. Where many decisions change, its thresholds "
        "have to be fitted again on the trained model (refit in the recipe)."
    )
    return [section]


def data(run: Run, _save: Save) -> list[Section]:
    """What the interpreter was trained and tested on, and what the audit of it found."""
    audit = run.interpreter.get("audit") or {}
    if not audit:
        return []
    section = Section("data", "Data of the interpreter", [" ".join(tables.audit_facts(audit))])
    counts = tables.audit_table(audit)
    section.folded += [counts] if counts else []
    return [section]


def _facts(interpreter: Document) -> str:
    facts = ["A small network reads the hidden state and gives the probability that the prompt is harmful."]
    if interpreter.get("layer") is not None:
        facts.append(f"It reads layer {interpreter['layer']}.")
    if interpreter.get("parameters"):
        share = interpreter.get("parameter_share")
        of_model = f", {100 * share:.2g} % of the model's" if share else ""
        facts.append(f"It has {interpreter['parameters']:,} parameters{of_model}.")
    if interpreter.get("threshold") is not None:
        facts.append(f"A prompt is flagged from a probability of {interpreter['threshold']:.2f}.")
    return " ".join(facts)
