"""Claims on trial: the rules, the verdicts, and README's table."""

import math

import pytest

from moe_lite.course import trial
from moe_lite.course.claims import CLAIMS, Claim

RULE = Claim("", "field", "", "", "", (1.0, 2.0))


@pytest.mark.parametrize(
    ("low", "high", "spread", "said"),
    [(1, 2, False, "holds"), (0, 0.99, False, "does not hold"), (2.1, 3, True, "does not hold"),
     (0.5, 1.5, False, "undecided"), (0.5, 1.5, True, "it depends"),
     (math.nan, math.nan, False, "cannot be known")],
)  # fmt: skip
def test_a_verdict_is_that_of_the_whole_interval(low, high, spread, said):
    assert trial.verdict(RULE, trial.Evidence(low, high, "", spread)) == said


def test_every_claim_has_evidence_and_a_better_sentence():
    keys = [claim.key for claim in CLAIMS]
    assert len(keys) == len(set(keys)) >= 20
    assert set(trial.EVIDENCE) == set(trial.INSTEAD) == set(keys)
    assert all(claim.holds[0] <= claim.holds[1] for claim in CLAIMS)


def test_a_verdict_goes_against_what_the_course_said():
    own = [claim for claim in CLAIMS if claim.kind == "course"]
    assert [trial.verdict(claim, trial.EVIDENCE[claim.key]()) for claim in own] == ["does not hold"]


def test_the_table_in_readme_is_what_the_evidence_says():
    page = trial.README.read_text(encoding="utf-8")
    assert trial.fill(page) == page, "run python -m moe_lite.course.trial"


def test_a_card_escapes_what_it_quotes():
    assert "GPT-4o" in trial.card("closed") and "CANNOT BE KNOWN" in trial.card("closed")
    assert trial.softmax_order() < 1e-12
