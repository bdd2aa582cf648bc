"""Scores against second implementations that share no code with ours."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
from scipy.stats import bootstrap
from sklearn.calibration import calibration_curve
from sklearn.metrics import balanced_accuracy_score, f1_score, matthews_corrcoef
from transformers.data.metrics import squad_metrics
from transformers.data.processors.squad import SquadExample

from bigtrain.data.tags import problem
from bigtrain.errors import DataError
from bigtrain.evaluate.classification import calibration_error, class_metric, reliability
from bigtrain.evaluate.compare import compare
from bigtrain.evaluate.predictions import Predictions, read_predictions, write_predictions
from bigtrain.evaluate.score import score
from bigtrain.evaluate.tagging import tag_metric


def predictions(task: Any, predicted: list[Any], truth: list[Any], scores: Any = None) -> Predictions:
    return Predictions(task, "model", [str(i) for i in range(len(truth))], predicted, truth, scores)


def classes(count: int, seed: int, right: float = 0.7) -> Predictions:
    """Random ones of three unequal classes, with probabilities."""
    generator = np.random.default_rng(seed)
    names = np.array(["a", "b", "c"])
    truth = np.random.default_rng(1).choice(names, count, p=[0.6, 0.3, 0.1])
    predicted = np.where(generator.random(count) < right, truth, generator.choice(names, count))
    scores = []
    for name in predicted:
        sure = 0.34 + 0.66 * generator.random()
        scores.append({str(other): float(sure if other == name else (1 - sure) / 2) for other in names})
    return predictions("classification", predicted.tolist(), truth.tolist(), scores)


def test_classification_equals_scikit_learn_and_so_does_its_bootstrap() -> None:
    given = classes(400, seed=0)
    found = score(given)
    assert found.scores["accuracy"].value == np.mean(np.array(given.truth) == np.array(given.predicted))
    assert found.scores["recall"].value == pytest.approx(balanced_accuracy_score(given.truth, given.predicted))
    assert (
        found.details["per_class"]["c"]["f1"] == f1_score(given.truth, given.predicted, labels=["c"], average=None)[0]
    )
    everything = class_metric(given)(np.arange(400))
    assert {name: found.scores[name].value for name in everything} == pytest.approx(everything)
    confusion = np.array(found.details["confusion_matrix"])
    assert confusion.sum() == 400
    assert matthews_corrcoef(given.truth, given.predicted) > 0.3

    truth, guess = np.array(given.truth), np.array(given.predicted)
    theirs = bootstrap(
        (np.arange(400),),
        lambda chosen: f1_score(truth[chosen], guess[chosen], average="macro"),
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        rng=5,
    ).confidence_interval
    ours = found.scores["f1"]
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)
    assert score(given) == found


def test_calibration_equals_scikit_learn() -> None:
    given = classes(2000, seed=3)
    confidence = np.array([max(row.values()) for row in given.scores or []])
    right = np.array(given.truth) == np.array(given.predicted)
    true, sure = calibration_curve(right, confidence, n_bins=15)
    bins = reliability(given)
    assert [b["accuracy"] for b in bins] == pytest.approx(true.tolist())
    assert [b["confidence"] for b in bins] == pytest.approx(sure.tolist())
    counts = np.histogram(confidence, bins=15, range=(0, 1))[0]
    expected = sum(counts[counts > 0] * abs(true - sure)) / 2000
    assert calibration_error(bins) == pytest.approx(expected)
    perfect = predictions("classification", ["a"] * 10, ["a"] * 10, [{"a": 1.0}] * 10)
    assert score(perfect).scores["ece"].value == 0


def test_a_class_without_examples_is_told() -> None:
    found = score(predictions("classification", ["a", "b", "c", "a"], ["a", "b", "a", "d"]))
    assert found.details["per_class"]["c"]["recall"] is None
    assert found.details["per_class"]["d"]["precision"] is None
    assert found.notes == [
        "no example is of class c: its recall is not defined, and counts as 0 in macro",
        "class d was never predicted: its precision is not defined, and counts as 0",
    ]


def test_regression() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=200)
    predicted = truth + generator.normal(size=200) / 2
    found = score(predictions("regression", predicted.tolist(), truth.tolist())).scores
    assert found["pearson"].value == pytest.approx(np.corrcoef(truth, predicted)[0, 1])
    ranks = [np.argsort(np.argsort(side)) for side in (truth, predicted)]
    assert found["spearman"].value == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found["rmse"].value == pytest.approx(np.sqrt(np.mean((truth - predicted) ** 2)))
    low, value, high = found["pearson"].low, found["pearson"].value, found["pearson"].high
    assert low is not None
    assert value is not None
    assert high is not None
    assert low < value < high
    flat = score(predictions("regression", [1.0, 1.0], [1.0, 2.0]))
    assert flat.scores["pearson"].value is None
    assert flat.notes == ["all numbers of one side are the same: correlations are not defined"]


def sentences(count: int, seed: int) -> Predictions:
    random.seed(seed)
    truth, predicted = [], []
    while len(truth) < count:
        tags = random.choices(["O", "B-X", "I-X", "B-Y", "I-Y"], weights=[6, 2, 1, 1, 1], k=9)
        if not problem(tags, "BIO"):
            truth.append(tags)
            predicted.append([t if random.random() < 0.8 else random.choice(["O", "B-X", "I-X", "I-Y"]) for t in tags])
    return predictions("tagging", predicted, truth)


def test_entities_equal_a_count_by_hand() -> None:
    """seqeval gives the values; the bootstrap counts by itself, also where predictions contradict themselves."""
    given = sentences(100, seed=0)
    found = score(given)
    everything = tag_metric(given)(np.arange(100))
    assert {name: found.scores[name].value for name in everything} == pytest.approx(everything)
    spoken = predictions("tagging", [["B-X", "I-X", "O", "B-Y"]], [["B-X", "O", "O", "B-Y"]])
    by_hand = score(spoken).scores
    assert (by_hand["precision"].value, by_hand["recall"].value, by_hand["accuracy"].value) == (0.5, 0.5, 0.75)
    assert score(spoken).details["per_class"]["X"]["examples"] == 1
    plain = score(predictions("tagging", [["N", "V"], ["N"]], [["N", "N"], ["N"]]))
    assert plain.scores["accuracy"].value == pytest.approx(2 / 3)


ANSWERS = [
    ("the Amazon, rainforest", ["Amazon rainforest"]),
    ("Amazon", ["the Amazon rainforest", "Amazonia"]),
    ("in 1942", ["1942", "in the year 1942"]),
    ("", []),
    ("something", []),
    ("", ["something"]),
    ("a", ["an"]),
    ("été's  end", ["Été's end."]),
    ("5,500,000 km²", ["5500000 km²"]),
]


def test_squad_equals_the_official_evaluation() -> None:
    found = score(predictions("question_answering", [p for p, _ in ANSWERS], [t for _, t in ANSWERS]))
    examples = [
        SquadExample(
            qas_id=str(i),
            question_text="",
            context_text="",
            answer_text=None,
            start_position_character=None,
            title="",
            answers=[{"text": text} for text in truth],
            is_impossible=not truth,
        )
        for i, (_, truth) in enumerate(ANSWERS)
    ]
    theirs = squad_metrics.squad_evaluate(examples, {str(i): said for i, (said, _) in enumerate(ANSWERS)})
    values = {name: value.value for name, value in found.scores.items()}
    assert values == pytest.approx(
        {
            "f1": theirs["f1"],
            "exact_match": theirs["exact"],
            "f1_answerable": theirs["HasAns_f1"],
            "exact_match_answerable": theirs["HasAns_exact"],
            "f1_unanswerable": theirs["NoAns_f1"],
            "exact_match_unanswerable": theirs["NoAns_exact"],
        }
    )


TRUTH = ["The cat sat on the mat.", "Good morning to all of you.", "It is raining again today, he said.", "No."] * 5
SAID = ["The cat sat on a mat.", "Good morning to you all.", "It rains again today, he said.", ""] * 5


def test_sequences_equal_sacrebleu() -> None:
    found = score(predictions("sequence_to_sequence", SAID, TRUTH))
    assert found.scores["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(SAID, [TRUTH]).score)
    assert found.scores["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(SAID, [TRUTH]).score)
    assert "tok:13a" in found.details["signatures"]["bleu"]
    assert found.notes == ["5 predictions are empty"]
    assert json.loads(json.dumps(found.as_json()))["scores"]["bleu"]["low"] < found.scores["bleu"].value


def test_two_models_are_compared() -> None:
    weak, strong, same = classes(300, 0, 0.5), classes(300, 1, 0.8), classes(300, 4, 0.5)
    tested = {row.metric: row for row in compare(weak, strong)}
    assert tested["accuracy"].test == "McNemar, exact"
    assert tested["accuracy"].p_value < 1e-4
    assert tested["f1"].p_value < 0.01
    gains = [(w != t, s != t) for w, s, t in zip(weak.predicted, strong.predicted, weak.truth, strict=True)]
    assert tested["accuracy"].difference == pytest.approx(
        (gains.count((True, False)) - gains.count((False, True))) / 300
    )
    assert {row.metric: row for row in compare(weak, same)}["accuracy"].p_value > 0.05
    assert all(row.p_value == 1 for row in compare(weak, weak))
    texts = predictions("sequence_to_sequence", SAID, TRUTH), predictions("sequence_to_sequence", TRUTH, TRUTH)
    assert {row.metric: row.p_value < 0.05 for row in compare(*texts)} == {"bleu": True, "chrf": True}
    for task in (sentences(50, 0), predictions("question_answering", ["a", "b"], [["a"], ["c"]])):
        assert all(row.difference == 0 and row.p_value == 1 for row in compare(task, task))
    with pytest.raises(DataError, match="are not predictions of the same examples"):
        compare(weak, classes(200, 0))


def test_predictions_and_their_labels(tmp_path: Path) -> None:
    path, labels = tmp_path / "p.jsonl", tmp_path / "labels.csv"
    labels.write_text("text,stars\none,a\ntwo,b\n,a\n")
    with pytest.raises(DataError, match="has no column 'label'; it has 'text', 'stars'"):
        _read(path, labels, {}, [{"predicted": "a"}])
    named = {"label": "stars"}
    with pytest.raises(DataError, match=r"2 predictions and .*labels\.csv 2 examples: .* 1 of 3 examples left out"):
        _read(path, labels, named, [{"predicted": "a"}, {"predicted": "b"}])
    found = _read(path, labels, named, [{"id": "row 2", "predicted": "b"}, {"id": "row 1", "predicted": "b"}])
    assert (found.truth, found.predicted) == (["b", "a"], ["b", "b"])
    with pytest.raises(DataError, match=r"has no label for 1 of the 2 predictions .*'row 3' for one"):
        _read(path, labels, named, [{"id": "row 3", "predicted": "b"}, {"id": "row 1", "predicted": "b"}])
    with pytest.raises(DataError, match="has no prediction for 'row 2'"):
        _read(path, labels, named, [{"id": "row 1", "predicted": "b"}])
    labels.write_text("text,stars\none,a\ntwo,b\n")
    with pytest.raises(DataError, match=r"has 1 predictions and .* 2 examples"):
        _read(path, labels, named, [{"predicted": "a"}])


def _read(path: Path, labels: Path, columns: dict[str, str], rows: list[dict[str, Any]]) -> Predictions:
    from bigtrain.config.tasks import ColumnsConfig

    write_predictions(path, iter(rows))
    return read_predictions(path, "classification", labels, ColumnsConfig(**columns))


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("classification", {"label": "a"}, "line 1: predicted is missing; for classification it takes the name of"),
        ("classification", {"predicted": "a"}, "label is missing; give what is right, here or in a file as --labels"),
        ("regression", {"predicted": "much", "label": 1}, "predicted is 'much'; for regression it takes a number"),
        ("tagging", {"predicted": ["O"], "tags": ["O", "O"]}, "has 1 predicted tags for 2 tokens"),
        (
            "question_answering",
            {"predicted": None, "answers": []},
            "predicted is None; for question_answering it takes",
        ),
        ("classification", {"predicted": "a", "label": "a", "scores": {"a": 2}}, "the probability of each class"),
    ],
)
def test_predictions_that_cannot_be_scored(tmp_path: Path, task: Any, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        read_predictions(path, task)
