import pyarrow as pa
import pytest

from lance_dagster.errors import EvaluationError
from lance_dagster.report.cells import reading_notes
from lance_dagster.report.headline import points
from lance_dagster.report.scores import Change
from lance_dagster.report.summary import build_summary
from lance_dagster_tests.report.tables import after, baseline, evolution, iteration, score_table, scores

SEVERAL = {
    "gsm8k:exact_match,strict-match": (0.40, 0.03),
    "gsm8k:exact_match,flexible-extract": (0.55, 0.03),
    "arc:acc,none": (0.50, 0.04),
    "arc:acc_norm,none": (0.60, 0.04),
    "piqa:word_perplexity,none": (31.0, None),
    "piqa:acc,none": (0.80, 0.0),
}


def test_checkpoints_come_in_the_order_in_which_they_were_made() -> None:
    summary = evolution(last=(0.55, 0.62))
    assert [row.label for row in summary.scores] == [
        "M", "M_0", "M_0 again", "M_0^S", "M_0^D = M_1", "M_1^S", "M_1^D = M_2",
    ]  # fmt: skip
    assert [row.iteration for row in summary.scores] == [-1, -1, -1, 0, 0, 1, 1]


def test_the_mean_and_its_error_are_those_of_independent_tasks() -> None:
    table = score_table(*(scores(stage, SEVERAL) for stage in ("base", "initial", "initial_again")))
    row = build_summary("x", "lance", table, []).scores[0]
    assert [(s.task, s.metric) for s in row.tasks] == [
        ("gsm8k", "exact_match,strict-match"), ("arc", "acc_norm,none"), ("piqa", "acc,none"),
    ]  # fmt: skip
    assert row.mean == pytest.approx((0.4 + 0.6 + 0.8) / 3)
    assert row.stderr == pytest.approx(0.05 / 3)  # sqrt(0.03² + 0.04² + 0²) / 3
    assert row.documents == 300
    assert len(row.all_metrics) == 6


def test_parts_of_a_task_do_not_enter_the_mean() -> None:
    values = {"mini_test": 0.5, "mini_test/addition": 0.9, "mini_test/sorting": 0.1, "org/other": 0.7}
    table = score_table(*(scores(stage, values) for stage in ("base", "initial", "initial_again")))
    row = build_summary("x", "lance", table, []).scores[1]
    assert [score.task for score in row.tasks] == ["mini_test", "org/other"]
    assert [score.task for score in row.subscores] == ["mini_test/addition", "mini_test/sorting"]
    assert row.mean == pytest.approx(0.6)


def test_changes_are_against_the_base_and_against_m0() -> None:
    last = evolution(base=0.60, initial=0.50, last=(0.65,)).scores[-1]
    assert last.against_initial.value == pytest.approx(0.15)
    assert last.against_base.value == pytest.approx(0.05)
    assert last.against_initial.stderr == pytest.approx(0.0424264)  # sqrt(2) * 0.03
    assert last.beyond_noise is True  # 0.15 > 0.085 and > 0.01
    assert last.against_base.beyond_noise is False  # 0.05 < 0.085


def test_a_change_below_the_noise_floor_is_noise_however_small_its_error() -> None:
    last = evolution(initial=0.50, again=0.70, last=(0.65,)).scores[-1]
    assert last.against_initial.value > 2 * (last.against_initial.stderr or 0)
    assert last.beyond_noise is False


def test_the_base_has_no_noise_verdict_and_m0_differs_from_itself_by_nothing() -> None:
    base, initial, again, *_ = evolution().scores
    assert base.beyond_noise is None
    assert initial.against_initial == Change(0.0, 0.0, False)
    assert again.beyond_noise is False


def test_without_a_standard_error_noise_is_unknown_not_absent() -> None:
    summary = build_summary(
        "x", "lance", baseline(0.6, 0.5, 0.51), [iteration(0, after(0, sft=(0.505, None), dpo=(0.9, None)))]
    )
    sft, dpo = summary.scores[-2:]
    assert (dpo.stderr, dpo.beyond_noise) == (None, None)
    assert sft.beyond_noise is False  # below the noise floor, whatever the error


def test_a_method_without_dpo_is_reported_by_its_sft_checkpoints() -> None:
    table = score_table(scores("sft", {"mini_test": 0.7}, 0))
    summary = build_summary("x", "self_instruct", baseline(0.6, 0.5, 0.51), [iteration(0, table)])
    assert summary.scores[-1].label == "M_0^S"
    assert summary.headline.startswith("After iteration 000, M_0^S scores 70.0 ± 3.0 %")


@pytest.mark.parametrize("stage", ["base", "initial"])
def test_a_missing_baseline_is_named(stage: str) -> None:
    table = baseline(0.6, 0.5, 0.51)
    rows = [row for row in table.to_pylist() if row["stage"] != stage]
    with pytest.raises(EvaluationError, match=f"no rows of stage '{stage}'"):
        build_summary("x", "lance", pa.Table.from_pylist(rows, schema=table.schema), [])


def test_scores_on_other_documents_are_not_compared() -> None:
    with pytest.raises(EvaluationError, match=r"M_0\^S and M_0 are not comparable"):
        build_summary("x", "lance", baseline(0.6, 0.5, 0.51), [iteration(0, after(0, sft=0.5, dpo=0.6, documents=50))])
    with pytest.raises(EvaluationError, match="other_task"):
        build_summary(
            "x", "lance", baseline(0.6, 0.5, 0.51), [iteration(0, after(0, sft=0.5, dpo=0.6, task="other_task"))]
        )


def test_a_value_that_is_no_share_cannot_enter_the_mean() -> None:
    with pytest.raises(EvaluationError, match="31, not a share"):
        build_summary("x", "lance", baseline(31.0, 0.5, 0.5, metric="word_perplexity"), [])


def test_a_score_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(EvaluationError, match="not a finite number"):
        build_summary("x", "lance", baseline(float("nan"), 0.5, 0.5), [])


def test_scores_of_two_models_under_one_checkpoint_are_refused() -> None:
    table = score_table(
        scores("base", {"a": 0.5}), scores("initial", {"a": 0.5}), scores("initial_again", {"a": 0.5}),
        scores("base", {"b": 0.5}, model_digest="someone_else"),
    )  # fmt: skip
    with pytest.raises(EvaluationError, match="several models"):
        build_summary("x", "lance", table, [])


def test_a_metric_that_is_listed_twice_is_refused() -> None:
    table = score_table(scores("base", {"a": 0.5}), scores("base", {"a": 0.6}))
    with pytest.raises(EvaluationError, match="twice"):
        build_summary("x", "lance", table, [])


def test_scores_of_another_iteration_are_refused() -> None:
    with pytest.raises(EvaluationError, match="expected scores of iteration 1"):
        build_summary("x", "lance", baseline(0.6, 0.5, 0.5), [iteration(1, after(0, sft=0.5, dpo=0.5))])


def test_points_that_round_to_nothing_have_no_sign() -> None:
    assert points(Change(-0.0004, 0.01, False)) == "0.0 ± 1.0"
    assert points(Change(-0.012, None, None)) == "\N{MINUS SIGN}1.2"


def test_a_noise_floor_that_was_not_measured_is_not_zero() -> None:
    without = score_table(scores("base", {"a": 0.6}), scores("initial", {"a": 0.5}))
    same_model = score_table(
        scores("base", {"a": 0.6}),
        *(scores(stage, {"a": 0.5}, model_digest="m0") for stage in ("initial", "initial_again")),
    )
    for table in (without, same_model):  # the same model scored twice says nothing about another training
        summary = build_summary("x", "lance", table, [iteration(0, after(0, sft=0.5, dpo=0.7, task="a"))])
        assert summary.noise_floor is None
        assert summary.scores[-1].beyond_noise is True  # by its standard error alone
        assert "was not measured" in " ".join(reading_notes(summary))
        assert "0.0 points" not in " ".join(reading_notes(summary))
        assert summary.to_json()["noise_floor"] is None
