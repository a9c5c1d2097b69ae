"""The seventeen checks against false robustness, and one call that makes them all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from bmtard_hooks.attacks.base import NonFiniteLogits
from bmtard_hooks.evaluation.checks import attacks, forward, gradients, paper
from bmtard_hooks.evaluation.checks.context import Context, Finding, NotRun
from bmtard_hooks.evaluation.report import CheckResult, RobustnessReport
from bmtard_hooks.evaluation.runner import AttackRunner

logger = logging.getLogger(__name__)

Sweeps = dict[str, list[tuple[float, float, int]]]

PASSES_PER_IMAGE = 700
"""Forward plus backward passes that the active checks cost a correctly classified image, for estimates.

PGD and CW with 100 steps are 402 of them, the other radii of A5 123, further starts 164 for every image that the first
left, A9 42, the rest few. That A4 is not among them is because honest models fall to it at once; one that hides its
gradients costs up to 402 more.
"""


@dataclass(frozen=True)
class Check:
    """One check.

    Args:
        id: see ``CheckResult``; so are ``title`` and ``severity``.
        title: what a model must do to pass.
        severity: ``error`` or ``warning``.
        look: makes the check.
    """

    id: str
    title: str
    severity: str
    look: Callable[[Context], Finding]

    def __call__(self, context: Context) -> CheckResult:
        """Make the check; one that crashes counts as not run, so that the others are not lost."""
        try:
            finding = self.look(context)
        except NotRun as reason:
            return CheckResult(self.id, self.title, "not run", self.severity, str(reason))
        except NonFiniteLogits:
            raise
        except Exception as error:
            logger.warning("check %s crashed", self.id, exc_info=True)
            return CheckResult(self.id, self.title, "not run", self.severity, f"{type(error).__name__}: {error}")
        if finding.passed:
            return CheckResult(self.id, self.title, "pass", self.severity, finding.evidence)
        return CheckResult(self.id, self.title, "fail", finding.severity or self.severity, finding.evidence)


CHECKS = (
    Check("P1", "survives AutoAttack, whose gradient attacks do the work", "error", paper.survives_autoattack),
    Check("P2", "strong attacks beat weak ones", "error", paper.iterations_help),
    Check("P3", "white-box attacks beat black-box attacks", "error", paper.white_box_beats_black_box),
    Check("P4", "white-box attacks beat gradient estimation", "error", paper.gradient_estimation_is_weaker),
    Check("A1", "the forward pass is deterministic", "error", forward.is_deterministic),
    Check("A2", "outputs are logits, not probabilities", "warning", forward.gives_logits),
    Check("A3", "gradients of cross-entropy and margin exist", "error", gradients.gradients_exist),
    Check("A4", "attacks without a serious bound win", "error", attacks.falls_to_large_radii),
    Check("A5", "accuracy falls with the radius", "warning", attacks.falls_with_radius),
    Check("A6", "more steps and more starts change nothing", "warning", attacks.has_converged),
    Check("A7", "cross-entropy is not far weaker than the margin", "warning", attacks.losses_agree),
    Check("A8", "attacks answer with the best they found", "warning", attacks.keeps_what_it_finds),
    Check("A9", "the loss rises along an attack", "warning", gradients.loss_rises),
    Check("A10", "random noise is weaker than gradients", "error", attacks.noise_is_weaker),
    Check("A11", "the forward pass does not optimise", "warning", forward.does_not_optimise),
    Check("A12", "adversarial images are valid and judged alike in any batch", "error", attacks.examples_are_valid),
    Check("A13", "an attack changes no state", "error", forward.leaves_no_trace),
)


def run_checks(
    runner: AttackRunner, report: RobustnessReport, *, images: int = 200, eps: float, norm: str
) -> tuple[list[CheckResult], Sweeps]:
    """Look for signs that robust accuracies come from gradients that are hidden rather than from robustness.

    ``P1`` to ``P4`` compare columns of the report and are not run without them. ``A1`` to ``A13`` are active: they attack
    the data set's first so many images, see ``PASSES_PER_IMAGE``, and use the columns ``pgd_sat`` and ``cw_inf`` if they
    are there. Accuracies are compared on the same images, up to the larger of half a point and twice the paired
    standard error. Every process must make the call. The report is not changed.

    Args:
        runner: the evaluation's runner; all further attacks go through it, so that they too can be resumed.
        report: the evaluation so far.
        images: number of images of the active checks, positive.
        eps: radius of the evaluation in pixel scale; columns of other radii are left out.
        norm: ``linf`` or ``l2``.

    Returns:
        The results in the order of ``CHECKS``, and the curves ``accuracy against eps`` (in units of 1/255),
        ``accuracy against steps`` and ``accuracy against queries`` as far as they could be measured.

    Raises:
        NonFiniteLogits: if the model answers NaN or infinity.

    Reference:
        Athalye et al. 2018, Obfuscated Gradients Give a False Sense of Security; Carlini et al. 2019, On Evaluating
        Adversarial Robustness; Pintor et al. 2022, Indicators of Attack Failure.
    """
    context = Context(runner, report, images=images, eps=eps, norm=norm)
    results = [check(context) for check in CHECKS]
    if report.mode == "columns":
        queries = paper.queries_curve(context)
        if queries:
            context.sweeps["accuracy against queries"] = queries
    return results, context.sweeps
