"""What a training step costs: the contenders of ``benchmarks/train_step.py`` and how they are measured."""
