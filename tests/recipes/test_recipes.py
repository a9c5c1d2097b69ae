"""The recipes, run whole on data sets of the right layout with a few generated images."""

import cifar10
import cifar100
import datasets
import pytest
import tiny_imagenet
import train_teacher
from PIL import Image
from scenery import CONFIGS, LAYOUTS, save_teachers, write_dataset

from bmtard_hooks import load_teacher
from bmtard_hooks.models.create import channels_of

FAST = [
    "--steps",
    "1",
    "--eval_attack_steps",
    "2",
    "--num_train_epochs",
    "1",
    "--per_device_train_batch_size",
    "16",
    "--disable_tqdm",
    "true",
]


def write_pictures(directory):
    """A folder of pictures of several sizes in two classes."""
    for index in range(12):
        path = directory / "train" / ("cat" if index % 2 else "dog") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + index, 30), (20 * index, 90, 9)).save(path)
    return str(directory)


@pytest.fixture(scope="module")
def data_of(tmp_path_factory):
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    written = {}

    def data(name):
        if name not in written:
            layout = LAYOUTS[name]._replace(side=16)
            written[name] = write_dataset(tmp_path_factory.mktemp("data"), layout, images=40)
        return ["--dataset", written[name], "--validation_images", "12", *FAST]

    return data


def test_teachers_then_student_from_the_command_lines(data_of, tmp_path, capsys):
    data = data_of("cifar10")
    for kind in ("clean", "robust"):
        config = CONFIGS / f"cifar10_{kind}_teacher.yaml"
        rows = train_teacher.main(
            ["--config", str(config), *data, "--model", "resnet8_cifar", "--output_dir", str(tmp_path / kind)]
        )
        assert len(rows) == 1 and (tmp_path / kind / "config.json").is_file()
    rows = cifar10.main(
        ["--config", str(CONFIGS / "cifar10_small.yaml"), *data, "--output_dir", str(tmp_path / "student"),
         "--clean_teacher", str(tmp_path / "clean"), "--robust_teacher", str(tmp_path / "robust")]
    )  # fmt: skip
    assert list(rows) == ["clean teacher", "robust teacher", "bmtard"]
    assert all(0 <= value <= 1 for row in rows.values() for value in row.values())
    assert "| bmtard " in capsys.readouterr().out
    assert "trained with bmtard" in (tmp_path / "student" / "README.md").read_text()


@pytest.mark.parametrize("recipe, dataset", [(cifar100, "cifar100"), (tiny_imagenet, "zh-plus/tiny-imagenet")])
def test_other_data_sets_are_read_with_their_own_splits_and_labels(recipe, dataset, data_of, tmp_path, capsys):
    classes = LAYOUTS[dataset].classes
    teacher = save_teachers(tmp_path / "teachers", classes)["robust"]
    rows = recipe.main(
        [*data_of(dataset), "--student", "resnet8_cifar", "--method", "mtard", "--output_dir", str(tmp_path / "student"),
         "--save_strategy", "no", "--clean_teacher", teacher, "--robust_teacher", teacher]
    )  # fmt: skip
    assert list(rows) == ["clean teacher", "robust teacher", "mtard"]
    assert load_teacher(str(tmp_path / "student")).num_classes == classes
    assert "n = 40 images" in capsys.readouterr().out


def test_pictures_of_several_sizes_become_grey_squares_that_the_student_is_made_for(tmp_path):
    directory = write_pictures(tmp_path / "pictures")
    words = ["--dataset", directory, "--test_split", "train", "--validation_images", "4", *FAST, "--image_size", "16"]
    train_teacher.main([*words, "--image_mode", "L", "--model", "resnet8_cifar", "--output_dir", str(tmp_path / "out"),
                        "--method", "sat"])  # fmt: skip
    teacher = load_teacher(str(tmp_path / "out"))
    assert channels_of(teacher) == 1 and teacher.num_classes == 2
    with pytest.raises(ValueError, match="sizes.*image_size"):
        train_teacher.main([*words[:-2], "--output_dir", str(tmp_path / "other")])


def test_checkpoint_without_its_architecture_is_refused(data_of, tmp_path):
    with pytest.raises(ValueError, match="--robust_teacher_checkpoint w.pt needs the architecture"):
        cifar10.main([*data_of("cifar10"), "--robust_teacher_checkpoint", "w.pt", "--output_dir", str(tmp_path)])


def test_normalisation_inside_the_student_is_saved_with_it(data_of, tmp_path):
    cifar10.main(
        [*data_of("cifar10"), "--student", "resnet8_cifar", "--method", "natural", "--eval_attack", "false",
         "--student_mean", "0.5", "0.4", "0.3", "--student_std", "0.2", "0.2", "0.1", "--output_dir", str(tmp_path)]
    )  # fmt: skip
    assert load_teacher(str(tmp_path)).mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
