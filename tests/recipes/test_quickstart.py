import pytest
import quickstart
import transformers
from PIL import Image

from bmtard_hooks import load_teacher

NAMES = ["clean teacher", "robust teacher", "SAT baseline", "B-MTARD student"]


@pytest.fixture(scope="module")
def few_digits():
    whole, verbosity = quickstart.digits(), transformers.logging.get_verbosity()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "digits", lambda: whole.subset(range(128)))
        patch.setattr(quickstart, "TEST_IMAGES", 40)
        patch.setattr(quickstart, "VALIDATION_IMAGES", 24)
        yield
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def run(few_digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, quickstart.main(["--output_dir", str(folder), "--epochs_factor", "0.04"])


def test_digits_fill_the_range_of_eight_bits():
    data = quickstart.digits()
    assert data.images.shape == (1797, 1, 8, 8) and data.num_classes == 10
    assert data.images.min() == 0 and data.images.max() == 255
    assert data.labels.bincount().min() > 170


def test_four_networks_are_measured_and_can_be_loaded(run):
    folder, rows = run
    assert list(rows) == NAMES
    for row in rows.values():
        assert 0 <= row["robust_accuracy"] <= row["clean_accuracy"] <= 1
        assert row["w_robust"] == pytest.approx((row["clean_accuracy"] + row["robust_accuracy"]) / 2)
    assert all(load_teacher(str(folder / name.replace(" ", "_"))).num_classes == 10 for name in NAMES)


def test_picture_of_the_balance_is_written(run):
    with Image.open(run[0] / "balance.png") as image:
        assert image.format == "PNG" and image.width >= 1000 and image.height >= 700


def test_second_run_in_the_same_directory_prints_one_line_a_network_and_the_same_table(run, capfd):
    folder, rows = run
    capfd.readouterr()
    assert quickstart.main(["--output_dir", str(folder), "--epochs_factor", "0.04"]) == rows
    printed = capfd.readouterr()
    lines = printed.out.splitlines()
    assert [line.split("trained with")[0].strip() for line in lines[:4]] == NAMES
    assert all("validation clean" in line for line in lines[:4])
    assert sum(line.startswith("| ") for line in lines) == 5
    assert "PGD-20 W-Robust |" in printed.out and "W-Robust of the B-MTARD student" in printed.out
    assert str(folder / "balance.png") in lines[-1] and len(lines) < 20
    assert "{'" not in printed.out and printed.err == ""


def accuracies(*w_robust):
    return {name: {"w_robust": value} for name, value in zip(NAMES, w_robust, strict=True)}


def test_verdict_says_what_holds():
    assert quickstart.verdict(accuracies(0.5, 0.7, 0.6, 0.71)) == (
        "W-Robust of the B-MTARD student (71.00%) is above that of the clean teacher (50.00%), the robust teacher "
        "(70.00%) and the SAT baseline (60.00%)."
    )
    assert quickstart.verdict(accuracies(0.5, 0.7, 0.7, 0.7)) == (
        "W-Robust of the B-MTARD student (70.00%) is above that of the clean teacher (50.00%), but is not above that of "
        "the robust teacher (70.00%) and the SAT baseline (70.00%)."
    )
    assert quickstart.verdict(accuracies(0.5, 0.7, 0.6, 0.4)).startswith(
        "W-Robust of the B-MTARD student (40.00%) is not above that of the clean teacher (50.00%), the robust teacher"
    )
