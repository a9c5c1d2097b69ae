import pytest

from bmtard_hooks.compare.rows import Row, read_row, read_rows


def test_label_method_and_options_are_told_apart():
    assert read_row("bmtard") == Row("bmtard", "bmtard")
    assert read_row("B-MTARD (fast)=bmtard:temperature_rate=0.01,loss_scale=1") == Row(
        "B-MTARD (fast)", "bmtard", {"temperature_rate": "0.01", "loss_scale": "1"}
    )


def test_label_names_method_and_options_where_none_is_given():
    row = read_row("sat:steps=7")
    assert (row.label, row.method, row.folder) == ("sat steps=7", "sat", "sat_steps=7")


def test_words_of_a_row_win_over_those_before_and_lists_are_several_words():
    assert read_row("x=sat:lr_milestones=10 20,steps=7").words() == [
        "--method", "sat", "--lr_milestones", "10", "20", "--steps=7"
    ]  # fmt: skip
    assert read_row("x=sat:step_size=-1").words()[-1] == "--step_size=-1"  # a value that looks like an option


@pytest.mark.parametrize("text", ["=sat", "sat:steps", "sat:steps=", "a=sat:output_dir=x", "bmtrad", "sat:stepz=1"])
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(ValueError, match=r"row|unknown method"):
        read_row(text)


def test_rows_that_would_share_a_directory_are_refused():
    with pytest.raises(ValueError, match="'A b' and 'a_b' would share"):
        read_rows(["A b=sat", "a_b=trades"])
