"""Train in one forked child per environment, so that the imports are paid for once.

Usage: python environment_children.py DIRECTORY < cases.json > results.json, where a case is name: {variable: value} and a
result is [kind of error, message] or ["", what the run was like].
"""

import json
import os
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import tiny_data, tiny_net

from bmtard_hooks import BMTARDConfig, BMTARDTrainer


def train(directory):
    """Train on four images, and say with what."""
    config = BMTARDConfig(
        output_dir=str(directory / "run"), method="sat", per_device_train_batch_size=4, num_train_epochs=1, steps=1,
        augment="none", save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = BMTARDTrainer(tiny_net(0), config, train_dataset=tiny_data(4))
    trainer.train()
    return f"{trainer.state.global_step} step in {trainer.accelerator.mixed_precision}, {config.world_size} process"


def in_child(variables, directory):
    """Run ``train`` in a child with these variables, in a directory of its own."""
    directory.mkdir()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.chdir(directory)
        os.environ.update(variables)
        os.dup2(2, 1)  # the results go to stdout, from the parent
        try:
            answer = ["", train(directory)]
        except BaseException as error:
            traceback.print_exc()
            answer = [type(error).__name__, str(error)]
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        answer = json.loads(stream.read() or b'["died", ""]')
    os.waitpid(child, 0)
    return answer


if __name__ == "__main__":
    root = Path(sys.argv[1])
    cases = json.load(sys.stdin)
    print(json.dumps({name: in_child(variables, root / str(n)) for n, (name, variables) in enumerate(cases.items())}))
