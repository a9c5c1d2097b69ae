from bmtard_hooks.evaluation.progress import EvaluationProgress


def test_the_total_shrinks_to_what_was_needed_and_the_bar_ends_full(capsys):
    progress = EvaluationProgress({"pgd": 400, "square": 1000, "checks": 500}, rest="checks")
    assert progress._bar.total == 1900
    progress.attack_started("pgd", 8, 41)
    assert progress._bar.total == 1900 - 400 + 8 * 41
    for broken in (3, 1):
        progress.passed(80)  # of 4 images, fewer than their budget
        progress.batch_done(4, broken)
    assert progress._bar.n == 160 and progress._bar.total == 160 + 1500
    assert "pgd 8/8 50.0% stand" in progress._bar.desc
    progress.attack_started("square", 0, 100)  # nothing left for it
    progress.attack_started("check:noise", 5, 100)  # comes out of the rest
    progress.passed(500)
    progress.batch_done(5, 0)
    assert progress._bar.n == progress._bar.total == 660
    progress.close()
    assert "check:noise 5/5 100.0% stand" in capsys.readouterr().err


def test_it_can_be_silent(capsys):
    progress = EvaluationProgress({"pgd": 10}, disable=True)
    progress.attack_started("pgd", 1, 10)
    progress.passed(10)
    progress.batch_done(1, 1)
    progress.close()
    assert capsys.readouterr().err == ""
