"""Train the Safety Semantic Interpreter on stored hidden states (LASA, section 4).

Binary cross-entropy, every (language, source, label) cell with the same total weight; early stopping on development
rows that share no query with training, and the best weights restored.
"""

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from lasa.data.corpora.audit import normalise
from lasa.data.prompts import Prompt
from lasa.errors import DataError, RecipeError
from lasa.interpreter.probe import InterpreterConfig, SafetySemanticInterpreter
from lasa.interpreter.settings import TrainingOptions
from lasa.progress import Advance, progress


@dataclass(frozen=True)
class LabelledStates:
    """Hidden states of one read point with what is known of their prompts.

    Attributes:
        states: `[rows, H]` float32.
        prompts: The prompts; all labelled.
    """

    states: Tensor
    prompts: Sequence[Prompt]

    @cached_property
    def labels(self) -> Tensor:
        """1 for harmful, 0 for benign, `[rows]` float32."""
        return torch.tensor([float(bool(p.harmful)) for p in self.prompts])

    @cached_property
    def weights(self) -> Tensor:
        """See `cell_weights`, `[rows]` float32."""
        return cell_weights(self.prompts)

    def rows(self, keep: Sequence[bool]) -> "LabelledStates":
        """The rows marked True."""
        index = [row for row, kept in enumerate(keep) if kept]
        return LabelledStates(self.states[index], [self.prompts[row] for row in index])

    def only(self, languages: Sequence[str]) -> "LabelledStates":
        """The rows in some languages."""
        return self.rows([p.language in languages for p in self.prompts])


@dataclass(frozen=True)
class Trained:
    """A trained interpreter and how its seeds compare.

    Attributes:
        interpreter: The one with the lowest development loss, its best weights restored.
        histories: Development loss after each epoch, per seed.
        development_auroc: AUROC on the development rows of each seed's best weights.
    """

    interpreter: SafetySemanticInterpreter
    histories: list[list[float]]
    development_auroc: list[float]

    def to_json(self) -> dict[str, Any]:
        """Losses, epochs and AUROC per seed, and the spread between seeds (standard deviation; 0 for one seed)."""
        losses = [min(history) for history in self.histories]
        return {
            "losses": losses,
            "loss_sd": float(np.std(losses)),
            "best_epochs": [history.index(min(history)) + 1 for history in self.histories],
            "epochs": [len(history) for history in self.histories],
            "auroc": self.development_auroc,
            "auroc_sd": float(np.std(self.development_auroc)),
        }


def train_probe(
    train: LabelledStates,
    development: LabelledStates,
    config: InterpreterConfig,
    options: TrainingOptions,
    seed: int = 0,
) -> Trained:
    """Train with several seeds, the first of which is given, and keep the best by development loss.

    Raises:
        DataError: A split lacks a label, has an unlabelled row, or shares a query with the other; or the training
            diverged.
    """
    _check_splits(train, development)
    if config.norm == "none":
        return _logistic(train, development, config, options)
    found: list[tuple[list[float], SafetySemanticInterpreter]] = []
    with progress("Training the interpreter", options.seeds * options.epochs, "epochs") as advance:
        for one in range(seed, seed + options.seeds):
            history, interpreter = _train_one(train, development, config, options, one, advance)
            advance(options.epochs - len(history))
            found.append((history, interpreter))
    best = min(found, key=lambda entry: min(entry[0]))[1]
    return Trained(best, [history for history, _ in found], [auroc(one, development) for _, one in found])


def _logistic(
    train: LabelledStates, development: LabelledStates, config: InterpreterConfig, options: TrainingOptions
) -> Trained:
    """Logistic regression; how strongly it is regularised is decided by what it says of languages it never saw."""
    languages = sorted({p.language for p in train.prompts})
    transfer = dict.fromkeys(options.strengths, 0.0)
    if len(options.strengths) > 1 and len(languages) > 1:
        with progress("Choosing the regularisation", len(transfer) * len(languages), "fits") as advance:
            for code in languages:
                others, asked = train.rows([p.language != code for p in train.prompts]), development.only([code])
                for strength in transfer:
                    if len({p.harmful for p in asked.prompts}) == len({p.harmful for p in others.prompts}) == 2:
                        transfer[strength] += auroc(_solved(others, config, strength), asked)
                    advance(1)
    interpreter = _solved(train, config, max(transfer, key=lambda strength: transfer[strength]))
    return Trained(interpreter, [[development_loss(interpreter, development)]], [auroc(interpreter, development)])


def _solved(data: LabelledStates, config: InterpreterConfig, strength: float) -> SafetySemanticInterpreter:
    """The regression as an interpreter."""
    weight, bias = solved(data, strength)
    interpreter = SafetySemanticInterpreter(config)
    with torch.no_grad():
        interpreter.out.weight.copy_(weight[None])
        interpreter.out.bias.copy_(bias[None])
    return interpreter.eval()


def solved(data: LabelledStates, strength: float) -> tuple[Tensor, Tensor]:
    """Weight `[H]` and bias `[]` of the regression, its standardisation folded into them."""
    states = data.states.double().numpy()
    mean, deviation = states.mean(0), np.maximum(states.std(0), 1e-6)
    fitted = LogisticRegression(C=strength, max_iter=1000)
    fitted.fit((states - mean) / deviation, data.labels.numpy(), sample_weight=data.weights.numpy())
    weight = fitted.coef_[0] / deviation
    return torch.from_numpy(weight).float(), torch.tensor(fitted.intercept_[0] - weight @ mean).float()


def auroc(interpreter: SafetySemanticInterpreter, data: LabelledStates) -> float:
    """Area under the ROC curve."""
    with torch.no_grad():
        return float(roc_auc_score(data.labels.numpy(), interpreter(data.states).numpy()))


def cell_weights(prompts: Sequence[Prompt]) -> Tensor:
    """Weight of each row so that every (language, source, label) cell counts the same; mean 1.

    Both labels have the same total weight, even when one of them comes from more sources.
    """
    cells = [(p.language, p.source, p.harmful) for p in prompts]
    counts = Counter(cells)
    weights = torch.tensor([1 / counts[cell] for cell in cells])
    labels = torch.tensor([bool(p.harmful) for p in prompts])
    for side in (labels, ~labels):
        if side.any():
            weights[side] /= weights[side].sum()
    return weights * len(prompts) / weights.sum()


def split_by_query(prompts: Sequence[Prompt], share: float, seed: int) -> tuple[list[bool], list[bool]]:
    """Masks of training and development rows; all translations of a query go to the same side.

    Queries with the same text (normalised, see `lasa.data.corpora.audit`) count as one query.

    Raises:
        RecipeError: The share leaves one side empty.
    """
    groups = _query_groups(prompts)
    order = np.random.default_rng(seed).permutation(max(groups) + 1)
    count = round(share * len(order))
    if not 0 < count < len(order):
        raise RecipeError(f"A development share of {share} of {len(order)} queries leaves one side empty.")
    held_out = set(order[:count].tolist())
    development = [group in held_out for group in groups]
    return [not held for held in development], development


def _query_groups(prompts: Sequence[Prompt]) -> list[int]:
    """Number of each prompt's group: prompts are linked by their query id and by their text."""
    names: dict[tuple[str, str], int] = {}
    links = [
        (names.setdefault(("query", p.query_id), len(names)), names.setdefault(("text", normalise(p.text)), len(names)))
        for p in prompts
    ]
    left, right = np.array(links).T
    graph = coo_array((np.ones(len(links)), (left, right)), shape=(len(names), len(names)))
    groups = connected_components(graph, directed=False)[1]
    return [int(groups[query]) for query, _ in links]


def _train_one(
    train: LabelledStates,
    development: LabelledStates,
    config: InterpreterConfig,
    options: TrainingOptions,
    seed: int,
    advance: Advance,
) -> tuple[list[float], SafetySemanticInterpreter]:
    """One training: the development loss after each epoch, and the interpreter with its best epoch's weights."""
    generator = torch.Generator().manual_seed(seed)
    weights, labels = train.weights, train.labels
    deviation = train.states.std(dim=0)
    history: list[float] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        interpreter = SafetySemanticInterpreter(config)
        optimizer = torch.optim.AdamW(
            interpreter.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        best = copy.deepcopy(interpreter.state_dict())
        while len(history) < options.epochs and not _stalled(history, options.patience):
            interpreter.train()
            for rows in torch.randperm(len(labels), generator=generator).split(options.batch_size):  # type: ignore[no-untyped-call]
                states = train.states[rows]
                if options.noise:
                    states = states + options.noise * deviation * torch.randn(states.shape, generator=generator)
                loss = _weighted_loss(interpreter(states), labels[rows], weights[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            loss_now = development_loss(interpreter, development)
            if not math.isfinite(loss_now):
                raise DataError(
                    f"The interpreter's development loss is {loss_now} after epoch {len(history) + 1}. The hidden "
                    "states may not be finite (try float32), or the learning rate is too high."
                )
            if loss_now < min(history, default=math.inf):
                best = copy.deepcopy(interpreter.state_dict())
            history.append(loss_now)
            advance(1)
    interpreter.load_state_dict(best)
    return history, interpreter.eval()


@torch.no_grad()
def development_loss(interpreter: SafetySemanticInterpreter, data: LabelledStates) -> float:
    """The class-balanced loss that early stopping watches."""
    return float(_weighted_loss(interpreter.eval()(data.states), data.labels, data.weights))


def _stalled(history: Sequence[float], patience: int) -> bool:
    return bool(history) and len(history) - (history.index(min(history)) + 1) >= patience


def _weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (losses * weights).sum() / weights.sum()


def _check_splits(train: LabelledStates, development: LabelledStates) -> None:
    for name, part in (("training", train), ("development", development)):
        if any(p.harmful is None for p in part.prompts):
            raise DataError(f"The {name} prompts are not all labelled harmful or benign. Add a label column.")
        if len({p.harmful for p in part.prompts}) < 2:
            raise DataError(f"The {name} prompts need both harmful and benign rows to train an interpreter.")
    shared = {p.question for p in train.prompts} & {p.question for p in development.prompts}
    if shared:
        raise DataError(
            f"{len(shared)} queries are in both the training and the development data (such as "
            f"{min(shared)[1]!r}); early stopping and thresholds would be fitted on known prompts. Split by query."
        )
