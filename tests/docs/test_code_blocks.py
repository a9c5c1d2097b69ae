"""Every fenced block of the pages and of the README is run, in its page's order, on generated images with tiny networks.

Python blocks of a page share one namespace and one folder. Commands run in this process through their programs' own parsers, with
options that shrink them; `shell_commands.ONLY_PARSED` lists what is read but not run, and why.
"""

import ast
import builtins
import importlib
import inspect

import pytest
from fenced_blocks import ROOT, Block, all_blocks
from shell_commands import check_yaml, commands_of, run_command
from small_runs import everything_small, inside, make_place, make_world

BLOCKS = all_blocks()
GIVEN = {"model", "collate", "train", "validation"}
"""Names that a diff of the README takes from the user's script."""


@pytest.fixture(scope="module")
def place_of(tmp_path_factory):
    """Page to the folder and the namespace of its code."""
    world = make_world(tmp_path_factory.mktemp("world"))
    pages = tmp_path_factory.mktemp("pages")
    places = {}

    def of(page):
        if page not in places:
            places[page] = make_place(world, pages / str(len(places)))
        return places[page]

    with everything_small():
        yield of


def run_python(block, place):
    code = "\n" * block.line + block.code  # so that a traceback names the page's line
    exec(compile(code, str(block.page), "exec"), place.scope)


def run_shell(block, place):
    commands = commands_of(block.code)
    assert commands, "no command"
    for words in commands:
        run_command(words, place)


def check_diff(block, place):
    """Both sides must parse; what the new one imports must be there, take the arguments, and be all that it uses."""
    lines = block.code.splitlines()
    assert all(line[:1] in ("+", "-", " ", "") for line in lines) and any(line.startswith("+") for line in lines)
    sides = {kept: [line[1:] for line in lines if line[:1] in (kept, " ", "")] for kept in "-+"}
    trees = {kept: ast.parse("\n".join(side)) for kept, side in sides.items()}
    nodes = list(ast.walk(trees["+"]))
    known = dict(vars(builtins))
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            known |= {alias.name: getattr(module, alias.name) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known:
            named = {word.arg: None for word in node.keywords}
            inspect.signature(known[node.func.id]).bind_partial(*node.args, **named)
    used = {node.id: type(node.ctx) for node in nodes if isinstance(node, ast.Name)}
    made = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    missing = set(used) - set(known) - made - GIVEN - names_in(block.page)
    assert not missing, f"the new side uses {missing}, which nothing makes"


def names_in(page):
    """Every name in the Python blocks of a page."""
    trees = [ast.parse(block.code) for block in BLOCKS if block.page == page and block.language == "python"]
    return {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}


def shown_only(block, place):
    assert block.code.strip()


RULES = {
    "python": run_python,
    "bash": run_shell,
    "diff": check_diff,
    "yaml": lambda block, place: check_yaml(block.code),
    "text": shown_only,  # what a program printed
    "{toctree}": shown_only,  # test_pages.py and Sphinx look at it
}


def run_block(block, place):
    assert block.language in RULES, f"no rule for blocks of {block.language!r}"
    with inside(place.folder):
        RULES[block.language](block, place)


def parameter(block):
    """Torch calls some ways to serve a network deprecated, which work all the same."""
    kinds = ("DeprecationWarning", "FutureWarning", "UserWarning")
    deprecated = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in kinds]
    return pytest.param(block, marks=deprecated if block.page.name == "deployment.md" else [], id=block.name)


@pytest.mark.parametrize("block", [parameter(block) for block in BLOCKS])
def test_block_runs(block, place_of):
    run_block(block, place_of(block.page))


def test_results_that_the_readme_shows_come_out(place_of):
    scope = place_of(ROOT / "README.md").scope
    if "report" not in scope or "logits" not in scope:
        pytest.skip("the README's blocks were not run")
    assert list(scope["report"].columns) == ["pgd_sat", "DIFGSM", "worst_case"]
    assert scope["logits"].shape == (1, 10)


def test_log_of_the_plugin_page_has_the_keys_of_its_table(place_of):
    page = ROOT / "docs" / "plugin.md"
    scope = place_of(page).scope
    if "everything" not in scope:
        pytest.skip("the page's blocks were not run")
    table = page.read_text().split("## What the log means")[1].split("\n\n")[2]
    keys = {
        word
        for line in table.splitlines()[2:]
        for word in line.split("|")[1].replace("`", "").replace(",", " ").split()
    }
    config = scope["options"]("keys", method="bmtard", save_strategy="no")
    with inside(place_of(page).folder):
        teachers = {f"{role}_teacher": scope["load_teacher"](f"outputs/photos/{role}") for role in ("clean", "robust")}
        trainer = scope["BMTARDTrainer"](
            scope["make_student"](), config, train_dataset=scope["train"], eval_dataset=scope["validation"], **teachers
        )
        trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert keys <= set(logged) and len(keys) == 16


MISTAKES = {
    "a name that is not there": ("python", "from bmtard_hooks import PGDColator\n"),
    "an argument that is not there": ("python", "from bmtard_hooks import PGDCollator\nPGDCollator(epsilon=0.1)\n"),
    "a misspelt option": ("bash", "python recipes/cifar10.py --learnin_rate 0.1 --output_dir outputs/x\n"),
    "a method that is not there": ("bash", "bmtard train --method bmtrad --output_dir outputs/x\n"),
    "a file that is not there": ("bash", "python recipes/cifar11.py --output_dir outputs/x\n"),
    "a YAML file that is not there": (
        "bash",
        "python recipes/cifar10.py --config recipes/configs/x.yaml --output_dir outputs/x\n",
    ),
    "a teacher that nobody made": (
        "bash",
        "python recipes/cifar10.py --clean_teacher outputs/x --output_dir outputs/y\n",
    ),
    "an attack that is not there": (
        "bash",
        "bmtard evaluate --model outputs/bmtard --attacks pgd_tradse --output_dir outputs/x\n",
    ),
    "a target that is not there": ("bash", "make quickstrat\n"),
    "a launch file that is not there": (
        "bash",
        "accelerate launch --config_file recipes/accelerate/x.yaml recipes/cifar10.py\n",
    ),
    "an option of the launcher that is not there": ("bash", "accelerate launch --processes 2 recipes/cifar10.py\n"),
    "an option of a benchmark that is not there": (
        "bash",
        "python benchmarks/train_step.py --studnet resnet18_cifar\n",
    ),
    "a program without a rule": ("bash", "curl example.org\n"),
    "an extra that is not there": ("bash", "pip install -e .[dosc]\n"),
    "an ellipsis": ("bash", "bmtard preview …\n"),
    "an option in a YAML file": ("yaml", "temperature_rat: 0.1\n"),
    "an include that is not there": ("yaml", "include: ../data/cifar11.yaml\n"),
    "an import of a diff": ("diff", "-from transformers import Trainer\n+from bmtard_hooks import BMTRADTrainer\n"),
    "an argument of a diff": ("diff", "+from bmtard_hooks import BMTARDConfig\n+BMTARDConfig(outputdir='x')\n"),
    "a name of a diff": ("diff", "+print(trian)\n"),
    "a language": ("toml", "a = 1\n"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_in_a_block_is_noticed(mistake, place_of, capfd):
    block = Block(ROOT / "docs" / "none.md", 1, *MISTAKES[mistake])
    with pytest.raises((Exception, SystemExit)) as caught:
        run_block(block, place_of(block.page))
    assert not isinstance(caught.value, SystemExit) or caught.value.code
