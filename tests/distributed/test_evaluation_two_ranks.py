from evaluate_two_ranks import main
from forked_ranks import ONE, TWO, run


def test_two_processes_share_the_images_and_find_what_one_finds(tmp_path):
    (one,) = run(main, tmp_path / "one", tmp_path / "state one", flags=ONE)
    two = run(main, tmp_path / "two", tmp_path / "state two", flags=TWO)
    assert [rank["processes"] for rank in two] == [2, 2] and one["processes"] == 1
    for rank in two:
        assert (
            rank["broken"] == one["broken"] and rank["queries"] == one["queries"] and rank["checks"] == one["checks"]
        )
        assert rank["with unlike devices"] == one["with unlike devices"]
    assert sum(rank["attacked_here"] for rank in two) == one["attacked_here"] and two[0]["attacked_here"] > 0

    # what two processes left behind, one can take up
    (resumed,) = run(main, tmp_path / "resumed", tmp_path / "state two", flags=ONE)
    assert resumed["broken"] == one["broken"] and resumed["attacked_here"] == 0
