import io

import pytest

from search_r3_mteb import cli
from search_r3_mteb.evaluation.published import PublishedScore, published_scores, published_table
from search_r3_mteb.terminal import SafeConsole


def test_every_published_score_has_a_source_and_says_how_sure_it_is():
    scores = published_scores()
    assert len(scores) >= 10
    assert {score.certainty for score in scores} == {"P", "S"}
    assert len({(score.benchmark, score.system, score.setting) for score in scores}) == len(scores)
    assert {score.benchmark for score in published_scores(["BRIGHT"])} == {"BRIGHT"}
    with pytest.raises(ValueError, match="No published score is known for SciFact"):
        published_scores(["SciFact"])
    with pytest.raises(ValueError, match="a source and an address"):
        PublishedScore("BRIGHT", "x", "y", 0.5, "P", "abstract", "")
    with pytest.raises(ValueError, match="between 0 and 1"):
        PublishedScore("BRIGHT", "x", "y", 38.1, "P", "abstract", "https://example.org")


def test_they_are_shown_as_not_measured(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["reproduce", "--published", "BRIGHT"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "published, not measured here" in shown
    assert "0.381" in shown
    assert "[P] abstract" in " ".join(shown.split())


def test_what_a_narrow_table_leaves_out_is_where_it_says():
    """Also below the table of `evaluate`, whose own --json holds what was measured."""
    shown = SafeConsole(file=io.StringIO(), width=40)
    shown.print(published_table(published_scores(["BRIGHT"])))
    said = " ".join(shown.file.getvalue().split())
    assert "Left out at this width, search-r3 reproduce --published all --json has them: setting" in said
