"""The methods of ``elutq quantize``: what linears go through where there is a calibration text.

A new one is a line here; its own stage, if it has one, is a file in ``stages`` with a function of the same name
(docs/algorithm.md, a stage of one's own).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """What becomes of the matrices whose inputs are known: linears, and a head of less than 16 bits.

    Attributes:
        stages: by the names of their files, in their order: the first chooses levels and codes, those behind it improve
            what they are given. Fit alone needs no factor of the Hessian.
        corrects: whether linears that add to the residual stream aim at what undoes the quantized prefix's errors.
        allocates: whether a layout is chosen for each linear, at the same total size.
    """

    stages: tuple[str, ...]
    corrects: bool = False
    allocates: bool = False

    @property
    def factors(self) -> bool:
        """Whether stages need a factor of the Hessian."""
        return self.stages != ("fit",)


METHODS = {
    "fit": Method(("fit",)),
    "feedback": Method(("feedback",)),
    "refine": Method(("feedback", "refine")),
    "correct": Method(("feedback", "refine"), corrects=True),
    "allocate": Method(("feedback", "refine"), corrects=True, allocates=True),
}
"""By the name that the command line has for it."""

WITH_TEXT, WITHOUT_TEXT = "allocate", "fit"
"""The methods where nobody chooses."""
